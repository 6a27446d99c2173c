"""A sweep's display: a table on an interactive terminal, else one line a change; also for another process to watch."""

from __future__ import annotations

import shlex
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

from cifar_research.config import permissions, phases
from cifar_research.runs import ledger, metrics, report
from cifar_research.runs.ledger import COMPLETE, LEDGER, STATES, Job
from cifar_research.runtime import locks, programs
from cifar_research.runtime.errors import ReportError
from cifar_research.sweeps.launchers import Launcher
from cifar_research.sweeps.launchers.worker import LOG

# By state, most urgent first: its colour in the table.
_STYLES = {
    "running": "cyan", "failed": "bold red", "diverged": "yellow", "stopped": "yellow", "completed": "green",
    "pruned": "dim", "queued": "dim", "waiting": "dim",
}  # fmt: skip
_REDRAW_SECONDS = 1.0
_WATCH_SECONDS = 2.0  # between two looks at the files
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
        if job.is_complete and (ended := report.read_if_intact(self._folder / job.folder / "report.json")):
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
        if (more := len(failed) - _MOST_FAILURES) > 0:
            self.message(f"and {more} more have failed; their reasons are in {self._folder / LEDGER}")
        if num_removed:
            self.message(
                f"Weights and checkpoints of {num_removed} jobs are removed, as sweep.keep says; "
                f"{programs.program('train')} --from-run <job> makes them again"
            )
        self.message(f"Everything is in {self._folder}")
        for command in next_commands:
            self.message(f"Next: {command}")

    def _table(self) -> Table:
        states = {job.folder: self._state(job) for job in self._jobs}
        counts = Counter(states.values())
        title = ", ".join(f"{counts[state]} {state}" for state in ("queued", *STATES) if counts[state])
        leader = "" if self._best is None else f"; best so far {abs(self._best[0]):.4f}, {self._best[1]}"
        table = Table(title=Text(f"{self._folder}: {title}{self._time_left()}{leader}"), title_justify="left")
        table.add_column("job", overflow="fold")
        for name in ("state", "epoch", "val, best epoch", "seconds"):
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        # The most urgent jobs that fit the terminal: of the complete ones, the last.
        height, order = max(3, shutil.get_terminal_size().lines - 8), list(_STYLES)
        ranks = [
            (order.index(states[job.folder]), -number if job.is_complete else number)
            for number, job in enumerate(self._jobs)
        ]
        for _, number in sorted(ranks)[:height]:
            job = self._jobs[abs(number)]
            epoch, best = self._progress(job)
            state, score = states[job.folder], "–" if best is None else f"{abs(best):.4f}"
            seconds = f"{self._seconds(job):.0f}" if state == "running" else "–"
            table.add_row(Text(job.folder), Text(state, style=_STYLES[state]), epoch, score, seconds)
        if len(self._jobs) > height:
            table.caption = f"and {len(self._jobs) - height} more"
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


def watch(folder: Path, console: Console | None = None) -> None:
    """Show a sweep's jobs until no process runs it; write nothing.

    ReportError if the folder is not a sweep's.
    """
    jobs = _jobs(folder)
    live = Live(folder, jobs, None, _total(jobs), console)
    with live:
        is_running = True
        while is_running:
            is_running = locks.is_held(folder)  # before the last look, so that no change is missed
            states = {job.folder: job.state for job in jobs}
            jobs[:] = _jobs(folder)
            live.total = _total(jobs)
            for job in jobs:
                if job.state in ("failed", *COMPLETE) and job.state != states.get(job.folder):
                    live.ended(job)
            live.refresh()
            if is_running:
                time.sleep(_WATCH_SECONDS)
        ledger.mark_stopped(folder, jobs)
    live.counts()
    for command in next_commands(folder):
        live.message(f"Next: {command}")


def next_commands(folder: Path) -> list[str]:
    """Return the command that continues a sweep, if no process runs it and jobs are left."""
    arguments, jobs = ledger.read(folder) or ([], [])
    if locks.is_held(folder) or all(job.is_complete or not job.is_planned for job in jobs):
        return []
    return [resume_command(folder, arguments)]


def resume_command(folder: Path, arguments: Sequence[str]) -> str:
    """Return the command that continues a sweep of these overrides."""
    permitted = permissions.permitted(arguments)
    allowing = [word for word in arguments if word not in permitted]  # a file cannot allow targets
    return f"{programs.program('train')} {shlex.join([*allowing, f'resume={folder}'])}"


def _jobs(folder: Path) -> list[Job]:
    sweep = ledger.read(folder)
    if sweep is None:
        raise ReportError(f"{folder}: is not the folder of a sweep; give one that has {LEDGER}")
    return [job for job in sweep[1] if job.is_planned]


def _total(jobs: Sequence[Job]) -> int:
    """Return the final number of jobs: a search lists those that it has proposed."""
    return max([len(jobs), *(job.config.get("sweep", {}).get("trials") or 0 for job in jobs[-1:])])
