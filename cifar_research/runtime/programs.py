"""What a user types: the commands of this installation."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def program(name: str) -> str:
    """Return what a user types for a command: scripts/train in a checkout, cifar-train where it is installed."""
    is_checkout = (Path(__file__).parents[2] / "scripts" / name).is_file()
    return f"scripts/{name}" if is_checkout else f"cifar-{name}"


def pip() -> str:
    """Return what a user types for the pip of the environment that this runs in."""
    return f"{shlex.quote(sys.executable)} -m pip"
