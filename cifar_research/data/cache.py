"""Decoded images as memory-mapped files, made once, whoever asks first."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cifar_research.config import targets
from cifar_research.runtime import files, folders, locks
from cifar_research.runtime.errors import DataError

_VERSION = 3  # of the folder's form: of another form, another folder
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_VAL_ARRAYS = ("val_images", "val_labels")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A data set as decoded: images uint8 [N, H, W, C], labels int64 [N]; `note` says what a reader must know.

    val_images is None where validation images are to be held out from train_images. left_out: names of files that are not
    used, by the reason.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    note: str | None = None
    fingerprint: str = ""
    found_in: str | None = None  # the folder or the archive it was read from
    val_images: np.ndarray | None = None
    val_labels: np.ndarray | None = None
    left_out: Mapping[str, list[str]] = field(default_factory=dict)


def existing_folder(path: str | Path, key: str) -> Path:
    """Return the path of a folder with its ~ filled in; DataError, naming `key`, if it is none or does not exist."""
    folder, hint = folders.expanded(path, key).absolute(), ""
    try:
        if stat.S_ISDIR(folder.stat().st_mode):
            return folder
        reason = "is not a directory"
    except (FileNotFoundError, NotADirectoryError):
        reason = "does not exist"
        with contextlib.suppress(OSError):
            hint = targets.nearest(
                folder.name, [entry.name for entry in folder.parent.iterdir() if entry.is_dir()], most=0
            )
    except (OSError, ValueError) as error:
        reason = f"cannot be read ({getattr(error, 'strerror', error)})"
    raise DataError(f"{key}: {folder} {reason}{hint or '; correct the path'}")


def load(folder: Path, name: str, identity: Any, decode: Callable[[], Source], *, has_val: bool = False) -> Source:
    """Return what `decode` returns, memory-mapped from a cache in `folder`; see `kept`.

    has_val: whether the source has validation images of its own.
    """
    names = _ARRAYS + _VAL_ARRAYS if has_val else _ARRAYS

    def make(target: Path) -> dict[str, Any]:
        source, digest = decode(), hashlib.sha256()
        for name in names:
            array = np.ascontiguousarray(getattr(source, name))
            digest.update(array)
            with needs(array.nbytes):
                np.save(target / f"{name}.npy", array, allow_pickle=False)
        facts = {"classes": source.classes, "note": source.note, "left_out": source.left_out}
        return facts | {"fingerprint": digest.hexdigest()[:16]}

    arrays, meta = kept(folder, name, identity, names, make)
    facts = {key: meta[key] for key in ("note", "fingerprint", "left_out")}
    return Source(**arrays, classes=tuple(meta["classes"]), **facts)


def kept(
    folder: Path, name: str, identity: Any, names: Sequence[str], make: Callable[[Path], dict[str, Any]]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return arrays by name, memory-mapped from a cache in `folder` that `make` fills if it is not there, and its facts.

    identity: whatever the arrays depend on, as JSON knows it: other files or settings, another cache. make: writes
    <name>.npy of each of `names` into the folder it is given, and returns facts for JSON. A damaged cache is made anew,
    with a warning. Two processes that want the same one make it once. DataError if it cannot be written.
    """
    key = hashlib.sha256(json.dumps([_VERSION, identity], sort_keys=True).encode()).hexdigest()[:16]
    target = folder / f"{name}-{key}"
    try:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return _read(target, names)
        with locks.held(folder / f"{target.name}.lock"):
            try:
                return _read(target, names)
            except (FileNotFoundError, ValueError) as error:
                if target.exists():
                    reason = f"{error.filename} is missing" if isinstance(error, OSError) else error
                    log.warning("%s: the cache is damaged (%s); making it anew", target, reason)
            _make(target, names, make)
            return _read(target, names)
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written or read ({error.strerror or error}); choose another data.cache_dir, or set "
            "CIFAR_CACHE_DIR"
        ) from error


@contextlib.contextmanager
def needs(num_bytes: int) -> Iterator[None]:
    """Add to an OSError how many bytes were to be written."""
    try:
        yield
    except OSError as error:
        # numpy leaves out why it wrote less than it was to.
        reason = error.strerror or os.strerror(errno.ENOSPC)
        raise OSError(error.errno or errno.ENOSPC, f"{reason}; it needs {num_bytes:,} bytes") from error


def _make(target: Path, names: Sequence[str], make: Callable[[Path], dict[str, Any]]) -> None:
    for left in target.parent.glob(f".{target.name}.*"):  # by a process that was killed: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        meta, facts = make(temporary), {}
        for name in names:
            path = temporary / f"{name}.npy"
            with path.open("rb") as file:
                os.fsync(file.fileno())
            facts[name] = {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        (temporary / "meta.json").write_bytes(files.dumps({**meta, "files": facts}))
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)  # damaged, or _read had returned it
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _read(target: Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the cache; FileNotFoundError if it is not there, or not whole, ValueError if it is damaged."""
    meta = files.loads((target / "meta.json").read_bytes())
    try:
        arrays = {}
        for name in names:
            path, facts = target / f"{name}.npy", meta["files"][name]
            # All of it, every time: a tenth of a second, and the pages are wanted anyway.
            if path.stat().st_size != facts["bytes"] or _crc32(path) != facts["crc32"]:
                raise ValueError(f"{path.name} has changed")
            # Copied where written to, and nobody writes: TensorFlow takes no read-only memory for a tensor.
            arrays[name] = np.load(path, mmap_mode="c", allow_pickle=False)
        return arrays, meta
    except OSError:
        raise
    except Exception as error:  # numpy's reader of headers raises many kinds
        raise ValueError(str(error)) from error


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value
