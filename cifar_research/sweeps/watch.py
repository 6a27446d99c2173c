"""Watching a running sweep from another process, by its files alone."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cifar_research.config import permissions
from cifar_research.runs import ledger
from cifar_research.runs.ledger import COMPLETE, LEDGER, Job
from cifar_research.runtime import locks, programs
from cifar_research.runtime.errors import ReportError
from cifar_research.sweeps.live import Live

_SECONDS = 2.0  # between two looks at the files


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
                time.sleep(_SECONDS)
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
