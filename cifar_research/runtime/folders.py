"""The cache folder, and paths that begin with ~."""

from __future__ import annotations

import os
from pathlib import Path

from cifar_research.runtime.errors import DataError


def root(cache_dir: str | None) -> Path:
    """Return the cache folder: `cache_dir`, $CIFAR_CACHE_DIR or the user's cache folder."""
    if cache_dir:
        return expanded(cache_dir, "data.cache_dir")
    if folder := os.environ.get("CIFAR_CACHE_DIR"):
        return expanded(folder, "CIFAR_CACHE_DIR")
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "CIFAR_CACHE_DIR") / "cifar_research"


def expanded(path: str | Path, key: str) -> Path:
    """Return a path with ~ or ~user replaced; DataError names `key` if no such home exists."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{key}: {path} begins with a home directory that does not exist; set {key} to an absolute path"
        ) from error
