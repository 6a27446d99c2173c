"""Locks between processes: flock(2), or a file naming its owner where flock is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import logging
import math
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cifar_research.runtime.errors import LockedError

UNLOCK = "--unlock"
_FILE, _FLOCK = "file", "flock"
_POLL_SECONDS = 0.1
_WARN_SECONDS = 10
_TRIES = 1000
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock; the lock's file has one field a line.

    start: the process's start time in clock ticks. boot: the boot ID and the process namespace. job: the SLURM job and
    its number of requeues. kind: `flock` or `file`. token: unique to each lock.
    """

    pid: str = "unknown"
    host: str = "an unknown machine"
    start: str = ""
    since: str = "an unknown time"
    boot: str = ""
    job: str = ""
    kind: str = ""
    token: str = ""

    @classmethod
    def this_process(cls, kind: str) -> Owner:
        pid, since = str(os.getpid()), time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(pid, platform.node(), _start(pid) or "", since, _boot(), _job(), kind, uuid.uuid4().hex)

    @classmethod
    def parse(cls, content: bytes) -> Owner | None:
        """Return the owner named in a lock's file, None if the file is empty."""
        lines = content.decode(errors="replace").splitlines()[: len(dataclasses.fields(cls))]
        return cls(*lines) if any(lines) else None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def lines(self) -> bytes:
        return "".join(f"{line}\n" for line in dataclasses.astuple(self)).encode()

    @property
    def is_here(self) -> bool:
        """Return whether the owner runs on this machine, where its end can be detected."""
        return self.boot == _boot() if self.boot else self.host == platform.node()

    @property
    def has_ended(self) -> bool:
        """Return whether the owner is known to have ended."""
        (job, _, requeues), (own_job, _, own_requeues) = self.job.partition(" "), _job().partition(" ")
        if job and job == own_job and int(requeues) < int(own_requeues):
            return True
        start = _start(self.pid)
        return self.is_here and (start is None or bool(self.start and start and start != self.start))


class Lock:
    """A lock on a file, released by the system if its process is killed.

    Without flock, the file itself is the lock, and it is replaced once its owner is known to have ended.
    unlocks: also replace the file of a process on another machine.
    """

    def __init__(self, path: Path, *, unlocks: bool = False) -> None:
        self.path, self.has_flock = path, True
        self._unlocks = unlocks
        self._open = contextlib.ExitStack()  # closes the flocked file
        self._content: bytes | None = None  # None while the lock is not held
        self._before: bytes | None = None

    def acquire(self, timeout: float = 0) -> Owner | None:
        """Acquire the lock within `timeout` seconds; return the owner if another process holds it.

        Creates the file's folder. Raises OSError if the file cannot be written.
        """
        end, tries = time.monotonic() + timeout, 0
        while True:
            try:
                owner = self._try()
            except (FileNotFoundError, FileExistsError):  # another process changed the file at the same time
                tries += 1
                if tries == _TRIES:
                    raise
                continue
            if owner is None or time.monotonic() >= end:
                return owner
            time.sleep(_POLL_SECONDS)

    def release(self, *, restores: bool = False) -> None:
        """Release the lock; `restores` gives its file the content from before `acquire`."""
        content = self._before if restores else b"" if self.has_flock else None
        with contextlib.suppress(OSError):  # the folder may have been deleted
            if self._content is not None and self.path.read_bytes() == self._content:
                self.path.unlink() if content is None else self.path.write_bytes(content)
        self._content = None
        self._open.close()

    def _try(self) -> Owner | None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = None
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            descriptor = os.open(self.path, os.O_RDWR)
            before = os.read(descriptor, 4096)
        owner = Owner.parse(before or b"")
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, descriptor)
            is_locked = _flock(descriptor)
            self.has_flock = is_locked is not None
            if is_locked is False:
                return owner or Owner()
            if owner and not (is_locked and owner.kind == _FLOCK) and not self._may_replace(owner):
                return owner
            content = Owner.this_process(_FLOCK if is_locked else _FILE).lines()
            if is_locked:
                if not os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                    raise FileNotFoundError(errno.ENOENT, "removed meanwhile", str(self.path))
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, content, 0)
                self._open = stack.pop_all()
            elif other := self._replace(before or b"", content):
                return other
        self._content, self._before = content, before
        return None

    def _replace(self, before: bytes, content: bytes) -> Owner | None:
        """Replace a file without a live owner; return the owner if another process does so first.

        Processes that read the same content compete to create one file, named by the content's hash.
        """
        claim = self.path.with_name(f"{self.path.name}.{hashlib.sha256(before).hexdigest()[:12]}")
        try:
            with claim.open("xb") as file:
                file.write(content)
        except FileExistsError:
            other = Owner.parse(claim.read_bytes()) or Owner()
            if not self._may_replace(other):
                return other
            claim.unlink(missing_ok=True)
            raise
        try:
            if self.path.read_bytes() != before:
                raise FileExistsError(errno.EEXIST, "replaced meanwhile", str(self.path))
            os.replace(claim, self.path)
        finally:
            claim.unlink(missing_ok=True)
        return None

    def _may_replace(self, owner: Owner) -> bool:
        return owner.has_ended or (self._unlocks and not owner.is_here)


def is_held(folder: Path) -> bool:
    """Return whether a process holds a folder's lock, or may do so on another machine; locks nothing."""
    try:
        owner = Owner.parse((folder / ".lock").read_bytes())
    except OSError:
        return False
    return owner is not None and not owner.has_ended


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Wait for the lock on a file and hold it; OSError if it cannot be written."""
    lock = Lock(path)
    if owner := lock.acquire(_WARN_SECONDS):
        log.warning("%s: waiting for %s; delete this file if that process has ended", path, owner)
        lock.acquire(math.inf)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def only_process_in(folder: Path, *, key: str, what: str, unlocks: bool = False) -> Iterator[Callable[..., None]]:
    """Hold a folder's lock, and yield a function that keeps the folder.

    Unless that function is called, the folder is left unchanged. Calling it with False undoes an earlier call, and
    deletes what has come into the folder since. A missing folder is created and locked only by that call.
    key: the config key of the folder. what: the activity, for messages, such as `process trains`.
    Raises LockedError if another process holds the lock or the folder cannot be written.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    lock, is_kept, before = Lock(folder / ".lock", unlocks=unlocks), False, set[Path]()

    def acquire() -> None:
        try:
            owner = lock.acquire()
        except OSError as error:
            raise LockedError(
                f"{key}: {folder} cannot be created or written ({error.strerror}); choose another"
            ) from error
        if owner is not None:
            raise LockedError(_refusal(folder, owner, key, what))

    def keep(keeps: bool = True) -> None:
        nonlocal is_kept, before
        if not keeps:
            is_kept = False
            return
        if missing:
            acquire()
            if any(not path.name.startswith(".lock") for path in folder.iterdir()):
                raise LockedError(f"{folder}: another {what} here, or did so just now; repeat this command")
        if not lock.has_flock:
            log.warning("%s: this disk has no flock(2); if another machine leaves this file, add %s", lock.path, UNLOCK)
        is_kept, before = True, set(folder.iterdir())

    try:
        if not missing:
            acquire()
        elif not os.access(missing[-1].parent, os.W_OK | os.X_OK):
            reason = f"{missing[-1].parent} is not a writable directory"
            raise LockedError(f"{key}: {folder} cannot be created or written ({reason}); choose another")
        yield keep
    finally:
        for path in set(folder.iterdir()) - before if before and not is_kept else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        lock.release(restores=not is_kept)
        for path in () if is_kept else missing:
            with contextlib.suppress(OSError):  # another process is using it
                path.rmdir()


def _refusal(folder: Path, owner: Owner, key: str, what: str) -> str:
    if owner.kind != _FILE or owner.is_here:
        return f"{folder}: another {what} here ({owner}); wait for it, or choose another {key}"
    return (
        f"{folder / '.lock'}: another {what} here ({owner}); wait for it, or add {UNLOCK} if you know that it has ended"
    )


def _flock(descriptor: int) -> bool | None:
    """Lock a file by flock(2); return whether it worked, None without flock support."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _job() -> str:
    """Return this process's SLURM job and its number of requeues."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return job and f"{job} {os.environ.get('SLURM_RESTART_COUNT', '0')}"


def _boot() -> str:
    """Return the boot ID and the process namespace, "" without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _start(pid: str) -> str | None:
    """Return a process's start time, "" if unknown, None if the process does not exist."""
    try:
        with contextlib.suppress(PermissionError):
            os.kill(int(pid), 0)
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (ProcessLookupError, ValueError, OverflowError):
        return None
    except OSError:  # no /proc, or other users' processes are hidden
        return ""
    return None if fields[0] in "ZX" else fields[19]
