"""Where a sweep's cells run. A launcher starts cells and says which have ended; what came out is in their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Launcher(Protocol):
    """What a sweep asks of a launcher, from one thread."""

    slots: int  # how many cells may be handed out at once

    def start(self, key: str, arguments: list[str], run_dir: Path, trial: tuple[str, int] | None) -> None:
        """Begin the command line `arguments`, whose run goes into `run_dir`; `key` is the cell's name from now on.

        trial: the address of a search's study and a number in it, for a run that ends when it is hopeless.
        """

    def wait(self, seconds: float) -> dict[str, int]:
        """Return the exit codes, by key, of what has ended, after so many seconds or as soon as there is one.

        Below zero it is minus the number of the signal that killed the process.
        """

    def stop(self) -> None:
        """Ask everything that runs to save and stop; `wait` then returns its exit codes."""

    def close(self) -> None:
        """Leave no process behind, saved or not."""
