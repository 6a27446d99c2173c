"""Folders of the user: the cache, and paths that begin with ~."""

from __future__ import annotations

import os
from pathlib import Path

from cifar_research.runtime.errors import DataError


def root(cache_dir: str | None) -> Path:
    """Return the folder of all caches: `cache_dir`, else $CIFAR_CACHE_DIR, else the user's cache folder."""
    for key, chosen in {"data.cache_dir": cache_dir, "CIFAR_CACHE_DIR": os.environ.get("CIFAR_CACHE_DIR")}.items():
        if chosen:
            return expanded(chosen, key)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cifar_research"
    except RuntimeError as error:
        raise DataError(
            "CIFAR_CACHE_DIR: is not set, and this user has no home directory to keep the cache in; set it, or "
            "data.cache_dir, to a folder that can be written"
        ) from error


def expanded(path: str | Path, key: str) -> Path:
    """Return a path with its ~ or ~user filled in; DataError, naming `key`, if that user has no home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{key}: {path} begins with a home directory that does not exist; write the whole path"
        ) from error
