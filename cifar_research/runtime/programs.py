"""Names of this installation's commands, for messages."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def program(name: str) -> str:
    """Return the command as typed: scripts/train in a checkout, else cifar-train."""
    is_checkout = (Path(__file__).parents[2] / "scripts" / name).is_file()
    return f"scripts/{name}" if is_checkout else f"cifar-{name}"


def pip() -> str:
    """Return the command that runs this environment's pip."""
    return f"{shlex.quote(sys.executable)} -m pip"
