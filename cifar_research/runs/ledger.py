"""A sweep's cells.json: its jobs and their states."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cifar_research.config import trust
from cifar_research.config.identity import Identity
from cifar_research.runtime.errors import ReportError

LEDGER = "cells.json"
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


def read(folder: Path) -> tuple[list[str], list[Job]] | None:
    """Return the arguments and jobs of a sweep's folder, or None; ReportError if damaged."""
    path = folder / LEDGER
    try:
        content = json.loads(path.read_bytes())
        jobs = [Job(**job) for job in content["cells"]]
        arguments = content["arguments"]
        if not all(isinstance(word, str) for word in arguments):
            raise TypeError("its arguments are not texts")
        for job in jobs:
            if job.state not in STATES or not isinstance(job.config["augmentation"], dict):
                raise TypeError(f"its job {job.folder} is incomplete")
            job.overrides = trust.of_a_file(job.overrides)
        return arguments, jobs
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); choose another hydra.sweep.dir") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ReportError(
            f"{path}: is damaged ({error}); delete it and give the sweep's command again with this hydra.sweep.dir: "
            "complete runs are not repeated"
        ) from error
