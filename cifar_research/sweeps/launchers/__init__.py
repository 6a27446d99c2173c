"""Launchers: start jobs and return those that have ended; results are in the jobs' folders."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Launcher(Protocol):
    """Starts the jobs of a sweep. Its methods are called from one thread."""

    slots: int  # how many jobs run at once, known after `open`
    queue: int  # how many jobs may be started; those beyond `slots` wait
    is_on_this_machine: bool  # so jobs see this machine's data

    def open(self, folder: Path) -> None:
        """Prepare to run the jobs of a sweep's folder without changing it; ConfigError if it fails."""

    def start(self, key: str, arguments: list[str], run_dir: Path, trial: tuple[str, int] | None) -> None:
        """Start the run of a command line in `run_dir`, as job `key`.

        trial: the address of a search's study and the trial's number, for a run that may be pruned.
        """

    def is_queued(self, key: str) -> bool:
        """Return whether a started job is still waiting."""

    def wait(self, seconds: float) -> dict[str, int]:
        """Return {key: exit code} of jobs that end within `seconds`, as soon as there is one.

        A negative exit code is minus the signal that killed the process.
        """

    def stop(self) -> None:
        """Ask all jobs to save and stop; `wait` then returns their exit codes."""

    def close(self) -> None:
        """Kill all processes, saved or not."""
