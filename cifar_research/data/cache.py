"""Decoded images as memory-mapped files, made once, whoever asks first."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
log = logging.getLogger(__name__)


class DataError(ValueError):
    """Data that is missing, damaged or not what it should be, in a sentence with its path and what to do."""


@dataclass(frozen=True)
class Source:
    """A data set as decoded: images uint8 [N, H, W, C], labels int64 [N]; `note` says what a reader must know."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    note: str | None = None
    fingerprint: str = ""


def root(cache_dir: str | None) -> Path:
    """Return the folder of all caches: `cache_dir`, else $CIFAR_CACHE_DIR, else the user's cache folder."""
    chosen = cache_dir or os.environ.get("CIFAR_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cifar_research"


def load(folder: Path, name: str, identity: Any, decode: Callable[[], Source]) -> Source:
    """Return what `decode` returns, memory-mapped from a cache in `folder` that is made if it is not there.

    identity: whatever the decoded arrays depend on, as JSON knows it: other files or settings, another cache.
    A damaged cache is made anew, with a warning. Two processes that want the same one make it once.
    """
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    target = folder / f"{name}-{key}"
    try:
        if (source := _read(target)) is not None:
            return source
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if (source := _read(target)) is None:
                _make(target, decode())
                source = _read(target)
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written or read ({error.strerror or error}); choose another data.cache_dir, or set "
            "CIFAR_CACHE_DIR"
        ) from error
    assert source is not None
    return source


def _make(target: Path, source: Source) -> None:
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        files, digest = {}, hashlib.sha256()
        for name in _ARRAYS:
            array = np.ascontiguousarray(getattr(source, name))
            digest.update(array)
            path = temporary / f"{name}.npy"
            with path.open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            files[name] = {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        meta = {"classes": source.classes, "note": source.note, "fingerprint": digest.hexdigest()[:16], "files": files}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)  # damaged, or _read had returned it
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _read(target: Path) -> Source | None:
    """Return the cache, None if there is none or it is damaged."""
    try:
        meta = json.loads((target / "meta.json").read_bytes())
        arrays = {}
        for name in _ARRAYS:
            path, facts = target / f"{name}.npy", meta["files"][name]
            # All of it, every time: a tenth of a second, and the pages are wanted anyway.
            if path.stat().st_size != facts["bytes"] or _crc32(path) != facts["crc32"]:
                raise ValueError(f"{path.name} has changed")
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return Source(**arrays, classes=tuple(meta["classes"]), note=meta["note"], fingerprint=meta["fingerprint"])
    except FileNotFoundError as error:
        if target.exists():
            log.warning("%s: the cache is damaged (%s is missing); making it anew", target, error.filename)
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s: the cache is damaged (%s); making it anew", target, error)
        return None


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value
