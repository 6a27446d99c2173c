"""Data sets and features on disk: memory-mapped, checksummed, replaced when damaged."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
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
_SPLITS = ("train", "test", "val")
log = logging.getLogger(__name__)

Labelled = tuple[np.ndarray, np.ndarray]  # images uint8 [N, H, W, C] and labels int64 [N]
Arrays = dict[str, np.ndarray]
Facts = dict[str, Any]  # as JSON knows them


@dataclass(frozen=True)
class Source:
    """A data set as decoded.

    splits: `train`, `test` and perhaps `val`; without it validation images are to be held out from `train`.
    note: what must be said beside results, or None. found_in: the folder or archive that it was read from.
    left_out: names of files that are not used, by the reason.
    """

    splits: Mapping[str, Labelled]
    classes: tuple[str, ...]
    note: str | None = None
    fingerprint: str = ""
    found_in: str | None = None
    left_out: Mapping[str, list[str]] = field(default_factory=dict)


def existing_folder(path: str | Path, key: str) -> Path:
    """Return a folder's absolute path, its ~ filled in; DataError, naming `key`, if it is missing."""
    folder, hint = folders.expanded(path, key).absolute(), ""
    if folder.is_dir():
        return folder
    reason = "is not a directory" if folder.exists() else "does not exist"
    with contextlib.suppress(OSError):
        names = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
        hint = targets.nearest(folder.name, names, most=0)
    raise DataError(f"{key}: {folder} {reason}{hint or '; correct the path'}")


def load(folder: Path, name: str, identity: Any, decode: Callable[[], Source]) -> Source:
    """Return what `decode` returns, memory-mapped from a cache in `folder`; see `load_arrays`."""
    names = {split: (f"{split}_images", f"{split}_labels") for split in _SPLITS}

    def make(target: Path) -> Facts:
        source, digest = decode(), hashlib.sha256()
        for split in filter(source.splits.get, _SPLITS):
            for name, array in zip(names[split], source.splits[split], strict=True):
                array = np.ascontiguousarray(array)
                digest.update(array.data)
                with needs(array.nbytes):
                    np.save(target / f"{name}.npy", array, allow_pickle=False)
        facts = {"classes": source.classes, "note": source.note, "left_out": source.left_out}
        return facts | {"fingerprint": digest.hexdigest()[:16]}

    arrays, facts = load_arrays(folder, name, identity, sum(names.values(), ()), make)
    splits = {split: (arrays[images], arrays[labels]) for split, (images, labels) in names.items() if images in arrays}
    return Source(splits, tuple(facts["classes"]), facts["note"], facts["fingerprint"], left_out=facts["left_out"])


def load_arrays(
    folder: Path, name: str, identity: Any, names: Sequence[str], make: Callable[[Path], Facts]
) -> tuple[Arrays, Facts]:
    """Return arrays by name, memory-mapped from a cache that `make` fills, and its facts.

    identity: whatever the arrays depend on, as JSON knows it: other files or settings, another cache. make: writes
    <name>.npy of some of `names` into the folder it is given, and returns facts for JSON. A damaged cache is replaced,
    with a warning. Two processes that want the same one make it once. DataError if it cannot be written.
    """
    key = hashlib.sha256(json.dumps([_VERSION, identity], sort_keys=True).encode()).hexdigest()[:16]
    target = folder / f"{name}-{key}"
    try:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return _read(target)
        with locks.held(folder / f"{target.name}.lock"):
            try:
                return _read(target)
            except (FileNotFoundError, ValueError) as error:
                if target.exists():
                    log.warning("%s: the cache is damaged (%s) and written again", target, error)
            _write(target, names, make)
            return _read(target)
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


def _write(target: Path, names: Sequence[str], make: Callable[[Path], Facts]) -> None:
    for remains in target.parent.glob(f".{target.name}.*"):  # of a process that was killed: the lock is ours
        shutil.rmtree(remains, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        facts, sizes = make(temporary), {}
        for path in (path for name in names if (path := temporary / f"{name}.npy").exists()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sizes[path.stem] = {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        (temporary / "meta.json").write_bytes(files.dumps({**facts, "files": sizes}))
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)  # it is damaged
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _read(target: Path) -> tuple[Arrays, Facts]:
    """Return the cache; FileNotFoundError if a file is missing, ValueError if one is damaged."""
    try:
        facts, arrays = files.loads((target / "meta.json").read_bytes()), {}
        for name, expected in facts["files"].items():
            path = target / f"{name}.npy"
            # All of it, every time: a tenth of a second, and the pages are wanted anyway.
            if path.stat().st_size != expected["bytes"] or _crc32(path) != expected["crc32"]:
                raise ValueError(f"{path.name} has changed")
            # Copied where written to, and nobody writes: TensorFlow takes no read-only memory for a tensor.
            arrays[name] = np.load(path, mmap_mode="c", allow_pickle=False)
        return arrays, facts
    except OSError:
        raise
    except Exception as error:  # numpy's reader of headers raises many kinds
        raise ValueError(str(error)) from error


def _crc32(path: Path) -> int:
    return zlib.crc32(np.memmap(path, np.uint8, "r").data)
