"""A sweep's display: a table on an interactive terminal, else one line a change."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live as RichLive
from rich.table import Table
from rich.text import Text

from cifar_research.config import phases
from cifar_research.runs import metrics, report
from cifar_research.runs.ledger import COMPLETE, STATES, Job
from cifar_research.runtime import programs
from cifar_research.runtime.errors import ReportError
from cifar_research.sweeps.launchers import Launcher
from cifar_research.sweeps.launchers.worker import LOG

# By state, most urgent first: its colour in the table.
_STYLES = {
    "running": "cyan", "failed": "bold red", "diverged": "yellow", "stopped": "yellow", "completed": "green",
    "pruned": "dim", "queued": "dim", "waiting": "dim",
}  # fmt: skip
_REDRAW_SECONDS = 1.0
_MOST_FAILURES = 20


class Live:
    """The display of a sweep, read from the files of its runs; a context manager.

    jobs: a list that a search extends. launcher: None if another process runs the jobs. total: the final number of jobs.
    """

    def __init__(
        self, folder: Path, jobs: Sequence[Job], launcher: Launcher | None, total: int, console: Console | None = None
    ) -> None:
        self._console = console or Console(highlight=False)
        self._folder, self._jobs, self._launcher, self.total = folder, jobs, launcher, total
        self._best: tuple[float, str] | None = None  # how good, by metrics.worth, and job folder
        self._durations: list[float] = []  # in seconds, of complete jobs
        self._drawn = 0.0
        self._live = RichLive(console=self._console, auto_refresh=False) if self._console.is_interactive else None
        for job in jobs:
            self._count(job)

    def __enter__(self) -> Live:
        if self._live:
            self._live.start()
        else:
            self.message(f"{self._folder}: {self.total} job{'s' * (self.total > 1)}, {self._slots} at once")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def refresh(self) -> None:
        """Read the runs' files and redraw the table, at most once a second."""
        now = time.monotonic()
        if self._live and now - self._drawn >= _REDRAW_SECONDS:
            self._drawn = now
            self._live.update(self._table(), refresh=True)

    def ended(self, job: Job) -> None:
        self._count(job)
        if not self._live:
            done = sum(job.is_complete for job in self._jobs)
            outcome = job.state if job.reason is None else f"{job.state}, {job.reason}"
            _, best = self._progress(job)
            name = metrics.display_name(_monitor(job))
            score = "" if best is None else f", validation {name} {abs(best):.4f} in its best epoch"
            seconds = f"{self._seconds(job):.0f} s{self._time_left()}"
            self.message(f"[{done}/{self.total}] {job.folder}: {outcome}{score}, {seconds}")

    def _count(self, job: Job) -> None:
        """Count a complete job for the best one and the time left."""
        if not job.is_complete:
            return
        with contextlib.suppress(ReportError):
            if ended := report.read_report(self._folder / job.folder / "report.json"):
                self._durations.append(ended["seconds"]["total"])
                worth = metrics.worth(ended["val"], _monitor(job))
                if job.state == "completed" and worth is not None and (self._best is None or worth > self._best[0]):
                    self._best = worth, job.folder

    def message(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)
        self._console.file.flush()

    def counts(self) -> None:
        """Print the number of jobs by state."""
        counts = Counter(job.state for job in self._jobs)
        states = [*COMPLETE, "failed", "stopped", "running", "waiting"]
        self.message(", ".join(f"{counts[state]} {state}" for state in states if counts[state]))

    def summary(self, num_removed: int, next_commands: Sequence[str]) -> None:
        """Print the number of jobs by state, the failures and the next commands.

        num_removed: the number of jobs whose weights were removed.
        """
        self.counts()
        failed = [job for job in self._jobs if job.state == "failed"]
        for job in failed[:_MOST_FAILURES]:
            self.message(f"failed: {job.folder}: {job.reason}; its log is {self._folder / job.folder / LOG}")
        if num_removed:
            self.message(
                f"Weights and checkpoints of {num_removed} jobs are removed, as sweep.keep says; "
                f"{programs.program('train')} --from-run <job> makes them again"
            )
        self.message(f"Everything is in {self._folder}")
        for command in next_commands:
            note = "   (completed jobs are not run again)" if "resume=" in command else ""
            self.message(f"Next: {command}{note}")

    def _table(self) -> Table:
        states = {job.folder: self._state(job) for job in self._jobs}
        counts = Counter(states.values())
        title = ", ".join(f"{counts[state]} {state}" for state in ("queued", *STATES) if counts[state])
        leader = "" if self._best is None else f"; best so far {abs(self._best[0]):.4f}, {self._best[1]}"
        table = Table(title=Text(f"{self._folder}: {title}{self._time_left()}{leader}"), title_justify="left")
        table.add_column("job", overflow="fold")
        for name in ("state", "epoch", "val, best epoch", "seconds"):
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        # The most urgent jobs that fit the terminal, in the sweep's order: of the complete ones, the last.
        height, order = max(3, shutil.get_terminal_size().lines - 8), list(_STYLES)
        ranks = [
            (order.index(states[job.folder]), -number if job.is_complete else number, job.folder)
            for number, job in enumerate(self._jobs)
        ]
        urgent = {name for *_, name in sorted(ranks)[:height]}
        for job in (job for job in self._jobs if job.folder in urgent):
            epoch, best = self._progress(job)
            state, score = states[job.folder], "–" if best is None else f"{abs(best):.4f}"
            seconds = f"{self._seconds(job):.0f}" if state == "running" else "–"
            table.add_row(Text(job.folder), Text(state, style=_STYLES[state]), epoch, score, seconds)
        if len(urgent) < len(self._jobs):
            table.caption = f"and {len(self._jobs) - len(urgent)} more"
        return table

    def _seconds(self, job: Job) -> float:
        """Return the seconds since a run began or continued, 0 if it has no files yet."""
        try:
            return max(0.0, time.time() - (self._folder / job.folder / ".hydra").stat().st_mtime)
        except OSError:
            return 0.0

    @property
    def _slots(self) -> int:
        """Return how many jobs run at once."""
        return self._launcher.slots if self._launcher else max(1, sum(job.state == "running" for job in self._jobs))

    def _state(self, job: Job) -> str:
        is_queued = self._launcher is not None and job.state == "running" and self._launcher.is_queued(job.folder)
        return "queued" if is_queued else job.state

    def _progress(self, job: Job) -> tuple[str, float | None]:
        """Return `3/10` and how good the best epoch is by the monitored metric, from history.csv."""
        try:
            rows = report.read_history(self._folder / job.folder / "history.csv")
        except ReportError:
            rows = []
        worths = [metrics.worth(row, f"val_{_monitor(job)}") for row in rows]
        best = max((worth for worth in worths if worth is not None), default=None)
        return f"{len(rows)}/{phases.total_epochs(job.config['training'])}", best

    def _time_left(self) -> str:
        left = self.total - sum(job.is_complete or job.state == "failed" for job in self._jobs)
        if left <= 0 or not self._durations:
            return ""
        minutes = left * statistics.mean(self._durations) / self._slots / 60
        return f"; about {minutes:.0f} min left" if minutes >= 1 else "; less than a minute left"


def _monitor(job: Job) -> str:
    return str(job.config["training"]["monitor"])
