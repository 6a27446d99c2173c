"""Cache of data sets and features: memory-mapped, checksummed, rebuilt when damaged."""

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cifar_research.config import targets
from cifar_research.runtime import files, folders, locks
from cifar_research.runtime.errors import DataError

_VERSION = 3  # of the folder's format; it is part of the folder's name
_SPLITS = ("train", "test", "val")
log = logging.getLogger(__name__)

Labelled = tuple[np.ndarray, np.ndarray]  # images uint8 [N, H, W, C] and labels int64 [N]
Arrays = dict[str, np.ndarray]
Facts = dict[str, Any]  # of JSON types


@dataclass(frozen=True)
class Source:
    """A decoded data set.

    splits: `train`, `test` and perhaps `val`. note: a caveat to show beside results, or None.
    found_in: the folder or archive it was read from. left_out: names of unused files, by reason.
    """

    splits: Mapping[str, Labelled]
    classes: tuple[str, ...]
    note: str | None = None
    fingerprint: str = ""
    found_in: str | None = None
    left_out: Mapping[str, list[str]] = field(default_factory=dict)


def existing_folder(path: str | Path, key: str) -> Path:
    """Return a folder's absolute path, ~ expanded; DataError names `key` if it is missing."""
    folder, hint = folders.expanded(path, key).absolute(), ""
    if folder.is_dir():
        return folder
    reason = "is not a directory" if folder.exists() else "does not exist"
    with contextlib.suppress(OSError):
        names = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
        hint = targets.nearest(folder.name, names, most=0)
    raise DataError(f"{key}: {folder} {reason}{hint or '; correct the path'}")


def load(folder: Path, name: str, identity: Any, decode: Callable[[], Source]) -> Source:
    """Return the result of `decode`, memory-mapped from a cache in `folder`; see `load_arrays`."""
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

    arrays, facts = load_arrays(folder, name, identity, make)
    splits = {split: (arrays[images], arrays[labels]) for split, (images, labels) in names.items() if images in arrays}
    return Source(splits, tuple(facts["classes"]), facts["note"], facts["fingerprint"], left_out=facts["left_out"])


def load_arrays(folder: Path, name: str, identity: Any, make: Callable[[Path], Facts]) -> tuple[Arrays, Facts]:
    """Return arrays by name, memory-mapped from a cache that `make` fills, and its facts.

    identity: all that the arrays depend on, of JSON types. make: writes .npy files into the folder that it is given, and
    returns facts of JSON types. A damaged cache is rebuilt with a warning. DataError if it fails.
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
                    log.warning("%s: the cache is damaged (%s); it is written again", target, error)
            _write(target, make)
            return _read(target)
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written or read ({error.strerror or error}); choose another data.cache_dir, or set "
            "CIFAR_CACHE_DIR"
        ) from error


@contextlib.contextmanager
def needs(num_bytes: int) -> Iterator[None]:
    """Add the number of bytes to be written to the message of an OSError."""
    try:
        yield
    except OSError as error:
        # numpy gives no reason when it writes too little.
        reason = error.strerror or os.strerror(errno.ENOSPC)
        raise OSError(error.errno or errno.ENOSPC, f"{reason}; it needs {num_bytes:,} bytes") from error


def _write(target: Path, make: Callable[[Path], Facts]) -> None:
    for remains in target.parent.glob(f".{target.name}.*"):  # of a killed process: we hold the lock
        shutil.rmtree(remains, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        facts, sizes = make(temporary), {}
        for path in sorted(temporary.glob("*.npy")):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sizes[path.stem] = {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        (temporary / "meta.json").write_bytes(files.dumps({**facts, "files": sizes}))
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)  # damaged
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
            # The whole file, every time: it takes a tenth of a second, and reads pages that are needed anyway.
            if path.stat().st_size != expected["bytes"] or _crc32(path) != expected["crc32"]:
                raise ValueError(f"{path.name} has changed")
            # Copy-on-write, and never written: TensorFlow rejects read-only memory for a tensor.
            arrays[name] = np.load(path, mmap_mode="c", allow_pickle=False)
        return arrays, facts
    except OSError:
        raise
    except Exception as error:  # numpy's header parser raises many types
        raise ValueError(str(error)) from error


def _crc32(path: Path) -> int:
    return zlib.crc32(np.memmap(path, np.uint8, "r").data)
