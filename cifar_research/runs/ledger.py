"""A sweep's jobs.jsonl: its arguments and jobs, then a line for each change of a state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from cifar_research.config import permissions
from cifar_research.config.identity import Identity
from cifar_research.runtime import locks
from cifar_research.runtime.errors import ReportError

LEDGER = "jobs.jsonl"
COMPLETE = ("completed", "diverged", "pruned")
STATES = ("waiting", "running", "stopped", "failed", *COMPLETE)


@dataclass
class Job:
    """One job of a sweep: its overrides and its state.

    folder: the name in the sweep's folder. config: as composed. is_planned: False for a job of an earlier grid.
    """

    folder: str
    overrides: list[str]
    config: dict[str, Any]
    state: str = "waiting"
    reason: str | None = None
    attempts: int = 0
    is_planned: bool = True

    @property
    def is_complete(self) -> bool:
        return self.state in COMPLETE

    @cached_property
    def identity(self) -> Identity:
        return Identity(self.config)

    @property
    def line(self) -> dict[str, Any]:
        """Return the job as a line of the ledger."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def change(self) -> dict[str, Any]:
        """Return the job's state as a line of the ledger, which has the job already."""
        return {name: getattr(self, name) for name in ("folder", "state", "reason", "attempts")}


def read(folder: Path) -> tuple[list[str], list[Job]] | None:
    """Return the arguments and jobs of a sweep's folder, or None; ReportError if damaged.

    A last line without its end, left by a killed process, is ignored.
    """
    path, number = folder / LEDGER, 1
    try:
        first, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]
        arguments = json.loads(first)["arguments"]
        if not all(isinstance(word, str) for word in arguments):
            raise TypeError("its arguments are not texts")
        jobs: dict[str, Job] = {}
        for number, line in enumerate(lines, start=2):  # noqa: B007 — used in the message
            change = json.loads(line)
            if "config" in change:
                job = jobs[change["folder"]] = Job(**change)
                job.overrides = permissions.permitted(job.overrides)
            else:
                job = jobs[change["folder"]]
                job.state, job.reason, job.attempts = change["state"], change["reason"], change["attempts"]
            if job.state not in STATES or not isinstance(job.config["augmentation"], dict):
                raise TypeError(f"its job {job.folder} is incomplete, or has the state {job.state!r}")
        return arguments, list(jobs.values())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); choose another hydra.sweep.dir") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ReportError(
            f"{path}: is damaged (line {number}: {error}); delete it and give the sweep's command again with this "
            "hydra.sweep.dir: complete runs are not repeated"
        ) from error


def mark_stopped(folder: Path, jobs: Sequence[Job]) -> None:
    """Set running jobs to stopped if no process runs the sweep; SLURM's jobs may outlive it."""
    if not locks.is_held(folder) and not (folder / "slurm").exists():
        for job in jobs:
            if job.state == "running" and not locks.is_held(folder / job.folder):
                job.state = "stopped"
