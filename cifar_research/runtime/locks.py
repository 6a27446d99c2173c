"""Locks between processes: by flock(2), or by a file that names its owner where the file system has no flock."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cifar_research.runtime.errors import LockedError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

UNLOCK = "--unlock"
_NO_FLOCK, _FLOCK = "file", "flock"  # what stands behind an owner's file
_HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
_POLL_SECONDS = 0.1
_WAIT_SECONDS = 10  # before a user is told for whom a process waits
_TRIES = 1000  # while another process makes and removes the same files
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock: the lines of its file.

    start: the process's start time, in clock ticks; boot: the machine, its boot and the process namespace; job: the
    SLURM job and how often it was requeued.
    """

    pid: str
    host: str = "an unknown machine"
    start: str = ""
    since: str = ""
    boot: str = ""
    job: str = ""
    kind: str = ""
    token: str = ""

    @classmethod
    def this_process(cls, kind: str) -> Owner:
        """Return this process as an owner, with a token that no other lock has."""
        pid, since = str(os.getpid()), time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(pid, platform.node(), _start(pid) or "", since, _boot(), _job(), kind, uuid.uuid4().hex)

    @classmethod
    def read(cls, content: bytes) -> Owner | None:
        """Return the owner that a lock's file names, None if it names none."""
        lines = content.decode(errors="replace").splitlines()[: len(dataclasses.fields(cls))]
        return cls(*lines) if any(lines) else None

    def lines(self) -> bytes:
        """Return the file that `read` reads."""
        return "".join(f"{line}\n" for line in dataclasses.astuple(self)).encode()

    def __str__(self) -> str:
        return f"process {self.pid or 'unknown'} on {self.host}" + (f", since {self.since}" if self.since else "")

    @property
    def is_here(self) -> bool:
        """Say whether it was started where its end can be seen from here."""
        return self.boot == _boot() if self.boot else self.host == platform.node()

    @property
    def has_ended(self) -> bool:
        """Say whether it is known to have ended."""
        (job, restarts), (own, own_restarts) = _parts(self.job, 2), _parts(_job(), 2)
        if job == own != "?" and restarts.isdecimal() and int(restarts) < int(own_restarts):
            return True  # SLURM has given its job to this process
        if self.is_here:
            start = _start(self.pid)
            return start is None or bool(self.start and start and start != self.start)
        (machine, boot, _), (here, now, _) = _parts(self.boot, 3), _parts(_boot(), 3)
        return self.host == platform.node() and machine == here != "?" and boot != now  # started again since


class Lock:
    """The lock on a file; a process that is killed gives it up.

    Without flock, the file itself is the lock. It stays when its process is killed, and is taken over if that process
    is known to have ended; unlocks: also if it is a process of another machine, whose end cannot be seen.
    """

    def __init__(self, path: Path, *, unlocks: bool = False) -> None:
        self.path, self.has_flock = path, True
        self._unlocks = unlocks
        self._descriptor: int | None = None  # with flock
        self._owner = Owner("")
        self._before: bytes | None = None  # what the file held, None if there was none

    def acquire(self, timeout: float | None = 0) -> Owner | None:
        """Take the lock, waiting so many seconds (None: for ever); return who holds it if that was in vain.

        Makes the file's folder. OSError if it cannot be made or written.
        """
        began, is_told, tries = time.monotonic(), False, 0
        while True:
            try:
                owner = self._try()
            except (FileNotFoundError, FileExistsError):  # another process makes and removes the same
                tries += 1
                if tries == _TRIES:
                    raise
                continue
            waited = time.monotonic() - began
            if owner is None or (timeout is not None and waited >= timeout):
                return owner
            if timeout is None and waited > _WAIT_SECONDS and not is_told:
                is_told = True
                log.warning("%s: waiting for %s; if that has ended, delete this file", self.path, owner)
            time.sleep(_POLL_SECONDS)

    def release(self, *, restores: bool = False) -> None:
        """Give the lock up; restores: leave its file as it was before, none if there was none."""
        content = self._before if restores else b"" if self.has_flock else None
        with contextlib.suppress(OSError):  # someone has deleted the folder
            if _content(self.path) == self._owner.lines():
                self.path.unlink() if content is None else self.path.write_bytes(content)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _try(self) -> Owner | None:
        """Take the lock, or return who holds it; FileNotFoundError, FileExistsError if its file comes or goes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before: bytes | None = None
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            descriptor = os.open(self.path, os.O_RDWR)
            before = os.read(descriptor, 4096)
        try:
            owner, self.has_flock = Owner.read(before or b""), True
            try:
                if fcntl is None:
                    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _HELD:
                    return dataclasses.replace(owner or Owner(""), kind=_FLOCK)
                self.has_flock = False
            if self.has_flock:
                # One that is refused removes its file while it holds it.
                if not os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
                if owner is not None and owner.kind == _NO_FLOCK and not self._may_replace(owner):
                    return owner  # on a machine that mounts this file system without flock
                self._owner, self._before = Owner.this_process(_FLOCK), before
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, self._owner.lines(), 0)
                self._descriptor, descriptor = descriptor, -1
                return None
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return self._take_over(before, owner)

    def _take_over(self, before: bytes | None, owner: Owner | None) -> Owner | None:
        """Put a file of this process in the place of one that nobody holds, or return who holds it.

        Of several processes that find the same file, the first to claim it does so; the others then find another one.
        """
        if owner is not None and not self._may_replace(owner):
            return owner
        claim = self.path.with_name(f"{self.path.name}.{hashlib.sha256(before or b'').hexdigest()[:12]}")
        mine = Owner.this_process(_NO_FLOCK)
        try:
            with claim.open("xb") as file:
                file.write(mine.lines())
        except FileExistsError:
            other = Owner.read(_content(claim) or b"")
            if self._unlocks if other is None else self._may_replace(other):
                claim.unlink(missing_ok=True)
                raise
            return other or Owner("")
        try:
            if _content(self.path) != (before or b""):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.path))
            os.replace(claim, self.path)
        except BaseException:
            claim.unlink(missing_ok=True)
            raise
        self._owner, self._before = mine, before
        return None

    def _may_replace(self, owner: Owner) -> bool:
        return owner.has_ended or (self._unlocks and not owner.is_here)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock on a file, for which it waits; OSError if it cannot be made or written."""
    lock = Lock(path)
    lock.acquire(None)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def only_process_in(folder: Path, *, key: str, what: str, unlocks: bool = False) -> Iterator[Callable[..., None]]:
    """Hold a folder's lock, and yield what to call before anything is written; without it all is left as it was.

    Of a folder that is not there yet the lock is taken by that call, since two that make one could not both remove it.
    key: of the config, which names the folder; what: is said to be there, `process trains`. Called with False, what is
    yielded takes its call back. LockedError if another process holds the lock, or if it cannot be made or written.
    """
    missing = [place for place in (folder, *folder.parents) if not os.path.exists(place)]
    lock, is_kept = Lock(folder / ".lock", unlocks=unlocks), False

    def acquire() -> None:
        try:
            owner = lock.acquire()
        except OSError as error:
            raise _unwritable(key, error.filename or folder, error.strerror) from error
        if owner is not None:
            raise LockedError(_refusal(folder, owner, key, what))

    def keep(does: bool = True) -> None:
        nonlocal is_kept
        if does and missing:
            acquire()
            if any(not path.name.startswith(".lock") for path in folder.iterdir()):
                raise LockedError(f"{folder}: another {what} here, or has done so meanwhile; give this command again")
        if does and not lock.has_flock:
            log.warning(
                "%s: this file system has no flock(2), so that this file is the lock; one that a process of another "
                "machine has left is removed by %s",
                lock.path,
                UNLOCK,
            )
        is_kept = does

    try:
        if not missing:
            acquire()
        elif not os.path.isdir(parent := missing[-1].parent):
            raise _unwritable(key, folder, os.strerror(errno.ENOTDIR))
        elif not os.access(parent, os.W_OK | os.X_OK):
            raise _unwritable(key, folder, os.strerror(errno.EACCES))
        yield keep
    finally:
        lock.release(restores=not is_kept)
        for place in () if is_kept else missing:
            with contextlib.suppress(OSError):  # another process is in it
                place.rmdir()


def _unwritable(key: str, path: Path | str, reason: str | None) -> LockedError:
    return LockedError(f"{key}: {path} cannot be made or written ({reason}); choose another")


def _refusal(folder: Path, owner: Owner, key: str, what: str) -> str:
    who = f" ({owner})" if owner.pid else ""
    if owner.kind == _FLOCK or owner.is_here:
        return f"{folder}: another {what} here{who}; wait for it, or choose another {key}"
    return (
        f"{folder / '.lock'}: another {what} here{who}, and its end cannot be seen from this machine; wait for it, or add "
        f"{UNLOCK} to this command if it has ended"
    )


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _parts(text: str, number: int) -> list[str]:
    return (text.split() + ["?"] * number)[:number]


def _job() -> str:
    """Return this process's SLURM job, and how often that was requeued."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return job and f"{job} {os.environ.get('SLURM_RESTART_COUNT', '0')}"


def _boot() -> str:
    """Return the machine, its boot and this process's namespace, "" if the system does not tell."""
    found = []
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            found.append(Path(path).read_text(encoding="utf-8").strip() or "?")
        except OSError:
            found.append("?")
    try:
        found.append(str(os.stat("/proc/self/ns/pid").st_ino))
    except OSError:
        found.append("?")
    return "" if found[1] == "?" else " ".join(found)


def _start(pid: str) -> str | None:
    """Return when a process was started, "" if the system does not tell; None if there is no such process."""
    try:
        state, *rest = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        return None if state in "ZX" else rest[18]
    except (OSError, ValueError, IndexError):  # no /proc, or one that hides the processes of others
        pass
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return None
    except OSError:
        pass
    return ""
