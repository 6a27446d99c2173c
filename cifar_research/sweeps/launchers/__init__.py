"""Where a sweep's cells run. A launcher starts cells and says which have ended; what came out is in their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Launcher(Protocol):
    """What a sweep asks of a launcher, from one thread."""

    slots: int  # how many cells run at once, known once it is open
    queue: int  # how many may be handed out at once, of which those beyond `slots` wait their turn
    is_on_this_machine: bool  # so that data which is not here is nowhere

    def open(self, folder: Path) -> None:
        """Get ready to run the cells of the sweep in this folder; ConfigError, saying what to do, if it cannot.

        Writes nothing into the folder.
        """

    def start(self, key: str, arguments: list[str], run_dir: Path, trial: tuple[str, int] | None) -> None:
        """Begin the command line `arguments`, whose run goes into `run_dir`; `key` is the cell's name from now on.

        trial: the address of a search's study and a number in it, for a run that ends when it is hopeless.
        """

    def is_queued(self, key: str) -> bool:
        """Say whether a cell that was handed out still waits for its turn."""

    def wait(self, seconds: float) -> dict[str, int]:
        """Return the exit codes, by key, of what has ended, after so many seconds or as soon as there is one.

        Below zero it is minus the number of the signal that killed the process.
        """

    def stop(self) -> None:
        """Ask everything that runs to save and stop; `wait` then returns its exit codes."""

    def close(self) -> None:
        """Leave no process behind, saved or not."""
