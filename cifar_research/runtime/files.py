"""Atomic writing of files, and JSON files with a checksum."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_research.runtime.errors import WriteError

WEIGHTS = "model.weights.h5"  # in a run's folder
_CHECKSUM = re.compile(rb',\n "checksum": "([0-9a-f]{64})"\n}\n\Z')


def dumps(content: Mapping[str, Any]) -> bytes:
    """Return a mapping as JSON with a checksum; ValueError for a number that is not finite."""
    text = json.dumps(content, indent=1, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps({**content, "checksum": digest}, indent=1) + "\n").encode()


def loads(content: bytes) -> dict[str, Any]:
    """Return the mapping written by `dumps`; ValueError if the content has changed."""
    end = _CHECKSUM.search(content)
    if end is None:
        raise ValueError("it has no checksum")
    body = content[: end.start()] + b"\n}"
    if hashlib.sha256(body).hexdigest() != end[1].decode():
        raise ValueError("its checksum does not match")
    return json.loads(body)


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file completely or not at all, even if the machine crashes.

    Text is written in UTF-8, with `?` for invalid characters. WriteError names the path and the bytes needed.
    """
    if isinstance(content, str):
        content = content.encode(errors="replace")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the rename durable
        finally:
            os.close(folder)
    except OSError as error:
        message = f"{path}: cannot be written ({error.strerror}); it needs {len(content):,} bytes in a writable folder"
        raise WriteError(error.errno, message) from error
    finally:
        with contextlib.suppress(OSError):  # it has been renamed, or was never made
            temporary.unlink()


def append(path: Path, content: bytes) -> None:
    """Append to an existing file; FileNotFoundError without one, WriteError if nothing was appended."""
    with path.open("r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise WriteError(error.errno, f"{path}: cannot be written ({error.strerror}); free some space") from error
