"""Where a sweep's jobs run. A launcher starts jobs and returns which have ended; their results are in their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Launcher(Protocol):
    """Starts the jobs of a sweep. Its methods are called from one thread."""

    slots: int  # jobs that run at once, known after `open`
    queue: int  # jobs that may be started at once, of which those beyond `slots` wait
    is_on_this_machine: bool  # so that jobs have the data of this machine

    def open(self, folder: Path) -> None:
        """Prepare to run the jobs of the sweep in this folder, which stays as it is; ConfigError if that fails."""

    def start(self, key: str, arguments: list[str], run_dir: Path, trial: tuple[str, int] | None) -> None:
        """Start the run of the command line `arguments` in `run_dir`, as the job called `key`.

        trial: the address of a search's study and a trial's number in it, for a run that may be pruned.
        """

    def is_queued(self, key: str) -> bool:
        """Return whether a job that was started is still waiting."""

    def wait(self, seconds: float) -> dict[str, int]:
        """Return the exit codes, by key, of the jobs that end within so many seconds, as soon as there is one.

        A negative one is minus the number of the signal that killed the process.
        """

    def stop(self) -> None:
        """Tell all jobs to save and stop; `wait` then returns their exit codes."""

    def close(self) -> None:
        """End all processes, saved or not."""
