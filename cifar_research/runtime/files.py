"""Files that are written whole or not at all, and JSON files with a checksum."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_research.runtime.errors import WriteError

WEIGHTS = "model.weights.h5"  # of a run's folder
_KEY = "checksum"


def dumps(content: Mapping[str, Any]) -> bytes:
    """Return the file of a mapping, with a checksum in place of any it has; ValueError for a number that is not finite."""
    content = {key: value for key, value in content.items() if key != _KEY}
    text = json.dumps(content, indent=1, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps({**content, _KEY: digest}, indent=1) + "\n").encode()


def loads(content: bytes) -> dict[str, Any]:
    """Return the mapping that a file holds; ValueError if it was cut short or altered, by a single bit or a space."""
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict) or _KEY not in found:
        raise ValueError("it has no checksum")
    del found[_KEY]
    if dumps(found) != content:
        raise ValueError("its checksum does not match")
    return found


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file so that it is there whole or not at all, even if the machine goes down meanwhile.

    A text is written in UTF-8, whatever the locale, with `?` for the bytes of a file's name that are no text.
    WriteError, with the path and the bytes needed, if it cannot be written; what was there then stays.
    """
    temporary = None
    if isinstance(content, str):
        content = content.encode(errors="replace")
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's files are the owner's alone; a result is as readable as any file the user makes.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive, too
        finally:
            os.close(folder)
    except OSError as error:
        raise WriteError(
            error.errno,
            f"{path}: cannot be written ({error.strerror}); it needs {len(content):,} bytes in a writable folder",
        ) from error
    finally:  # after an interrupt, too; after the rename there is nothing left
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
