"""JSON files that can tell that they are as they were written: a checksum within, and one way to write a content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

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
