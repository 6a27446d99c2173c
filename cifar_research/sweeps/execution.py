"""The loop of a sweep: starts jobs, records how they end, and stops in time."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_research.config.overrides import quoted
from cifar_research.config.schema import SweepConfig
from cifar_research.runs import report
from cifar_research.runs.ledger import Job
from cifar_research.runtime.errors import ReportError
from cifar_research.runtime.signals import StopRequest
from cifar_research.sweeps.keep import Keeper
from cifar_research.sweeps.launchers import worker
from cifar_research.sweeps.ledger import Ledger
from cifar_research.sweeps.live import Live

if TYPE_CHECKING:
    from cifar_research.sweeps import search
    from cifar_research.sweeps.launchers import Launcher

_POLL_SECONDS = 0.5
_FIRST_REPORT_SECONDS = 30
_REPORT_PAUSE = 20  # times the seconds that a report takes, so that reports cost a twentieth of the time


class Grid:
    """Yields the incomplete jobs of a grid, in order."""

    learns = False  # so a cluster can queue all of them at once

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.total = len(jobs)
        self._waiting = deque(job for job in jobs if not job.is_complete)

    def next(self) -> Job | None:
        return self._waiting.popleft() if self._waiting else None

    def tell(self, job: Job) -> None:
        """See search.Search.tell."""

    def trial_of(self, job: Job) -> None:
        """See search.Search.trial_of."""


@dataclass
class Execution:
    """Runs the jobs of a source until all have ended, a signal arrives or the time is over.

    time_limit: in seconds from now, or None. flags: added to each job's command line.
    """

    source: Grid | search.Search
    ledger: Ledger
    launcher: Launcher
    live: Live
    keeper: Keeper
    settings: SweepConfig
    stop: StopRequest
    time_limit: float | None
    flags: Sequence[str] = ()
    is_stopping: bool = False
    is_out_of_time: bool = False
    _again: deque[Job] = field(default_factory=deque)
    _running: dict[str, Job] = field(default_factory=dict)
    _next_report: float = 0.0

    def run(self) -> None:
        began = time.monotonic()
        self._next_report = began + _FIRST_REPORT_SECONDS
        while True:
            self._start_jobs()
            if not self._running:
                self.keeper.ended()
                return
            for key, code in self.launcher.wait(_POLL_SECONDS).items():
                self._record(self._running.pop(key), code)
            is_over = self.time_limit is not None and time.monotonic() - began >= self.time_limit
            if (self.stop.signal or is_over) and not self.is_stopping:
                self.is_out_of_time = not self.stop.signal
                why = f"sweep.time_limit={self.settings.time_limit} is over. " if self.is_out_of_time else ""
                self.live.message(f"{why}Stopping: each run saves first; a second signal ends them at once.")
                self._stop()
            self.live.refresh()

    def _start_jobs(self) -> None:
        """Start jobs while the launcher takes more."""
        room = self.launcher.slots if self.source.learns else self.launcher.queue
        while not self.is_stopping and len(self._running) < room:
            # With on_error=stop, start no new job while a failed one is being retried.
            stops = self.settings.on_error == "stop"
            if stops and any(job.attempts > 1 for job in self._running.values()):
                return
            job = None if stops and self._again else self.source.next()
            job = job or (self._again.popleft() if self._again else None)
            if job is None:
                return
            if job.is_complete:  # its run ended before the sweep was killed
                self.source.tell(job)
                continue
            job.attempts += 1
            self.ledger.update(job, "running")
            self._running[job.folder] = job
            run_dir = self.ledger.folder / job.folder
            folder = f"hydra.run.dir={quoted(str(run_dir))}"
            # A preset in the job may choose another launcher, but this job is already running in one.
            context = [
                word for word in self.ledger.arguments if word.startswith(("hydra.searchpath=", "allow_targets="))
            ]
            arguments = [*job.overrides, *context, "hydra/launcher=local", folder, *self.flags]
            self.launcher.start(job.folder, arguments, run_dir, self.source.trial_of(job))

    def _record(self, job: Job, code: int) -> None:
        """Record how a job has ended; try it again if that may help."""
        state, reason = _outcome(self.ledger.folder / job.folder, code, self.is_stopping)
        self.ledger.update(job, state, reason)
        # A wrong config would fail again.
        if state == "failed" and code != 2 and job.attempts <= self.settings.retries and not self.is_stopping:
            self._again.append(job)
            self.live.message(f"{job.folder}: will be tried again")
            return
        self.source.tell(job)
        self.live.ended(job)
        self.keeper.ended(job)
        if (began := time.monotonic()) >= self._next_report:
            write_report(self.ledger.folder)
            self._next_report = time.monotonic() + _REPORT_PAUSE * (time.monotonic() - began)
        if state == "failed" and self.settings.on_error == "stop" and not self.is_stopping:
            self._stop()

    def _stop(self) -> None:
        self.is_stopping = True
        self.launcher.stop()


def _outcome(run_dir: Path, code: int, is_stopping: bool) -> tuple[str, str | None]:
    """Return the state of an ended job and why it failed; its report takes precedence."""
    killed = -code if code < 0 else code - 128
    try:
        ended = report.read_report(run_dir / "report.json")
    except ReportError as error:
        return "failed", str(error)
    if ended is not None and ended["status"] != "stopped":
        return ended["status"], f"loss not finite at step {ended['steps']}" if ended["status"] == "diverged" else None
    if is_stopping and (code < 0 or killed in (signal.SIGTERM, signal.SIGINT)):
        return "stopped", None
    if killed in set(signal.Signals):
        hint = ", as the system does when memory runs out" if killed == signal.SIGKILL else ""
        return "failed", f"killed by {signal.Signals(killed).name}{hint}"
    return "failed", worker.reason(run_dir) or f"its process ended with exit code {code}"


def write_report(folder: Path) -> str | None:
    """Write leaderboard and figures in a child process, to free its memory; return its error."""
    arguments = [sys.executable, "-m", "cifar_research.report", str(folder), "--write"]
    done = subprocess.run(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", check=False
    )
    return (done.stderr.strip().splitlines() or ["no reason was given"])[-1] if done.returncode else None
