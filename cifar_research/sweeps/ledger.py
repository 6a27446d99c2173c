"""The ledger of a sweep: the states of its jobs, appended to at each change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cifar_research.config.identity import Identity
from cifar_research.config.schema import data_section
from cifar_research.data import datasets
from cifar_research.runs import report
from cifar_research.runs.ledger import COMPLETE, LEDGER, Job, read
from cifar_research.runtime.errors import ConfigError, ReportError
from cifar_research.runtime.files import append, atomic_write


@dataclass
class Ledger:
    """The jobs of a sweep and their states; each change appends a line to the file.

    arguments: the sweep's overrides. jobs: of its grid, in order. others: of an earlier grid in this folder, by their
    hash. news: lines for the user.
    """

    folder: Path
    arguments: list[str]
    jobs: list[Job] = field(default_factory=list)
    others: dict[str, Job] = field(default_factory=dict)
    news: list[str] = field(default_factory=list)
    _by_hash: dict[str, Job] = field(default_factory=dict)
    _folders: set[str] = field(default_factory=set)  # of all jobs
    _written: set[str] = field(default_factory=set)  # of the jobs in the file

    @classmethod
    def open(
        cls, folder: Path, arguments: Sequence[str], planned: Sequence[Job] | None, examples: Sequence[Job] = ()
    ) -> Ledger:
        """Return the ledger of a folder for the planned jobs; None keeps the folder's jobs.

        examples: of a search's jobs, whose images are where the command says.
        Nothing is written before `write`. ConfigError if the folder has jobs, and none of them is planned.
        """
        existing = read(folder)
        known = existing[1] if existing else []
        _follow_images(folder, known, planned or examples)
        others = {job.identity.hash: job for job in known}
        ledger = cls(folder, list(arguments), others=others, _folders={job.folder for job in known})
        for job in known if planned is None else planned:
            ledger.add(job)
        for job in ledger.others.values():
            job.is_planned = False
        if known and planned and len(ledger.others) == len(known):
            raise ConfigError(
                f"hydra.sweep.dir: {folder} holds a sweep with other jobs, and none of these is one of them; to add jobs, "
                "list the sweep's own values too, such as seed=0,1,2 to add seed 2; to start another sweep, give its whole "
                "command with another hydra.sweep.dir"
            )
        if existing:
            ledger.news = ledger._news()
        return ledger

    def add(self, job: Job) -> Job:
        """Add and return a job; reuse the known job, or its folder, if one is equal."""
        digest = job.identity.hash
        if digest in self._by_hash:
            return self._by_hash[digest]
        known = self.others.pop(digest, None)
        if known is not None:
            job.folder = known.folder
            job.state, job.reason = known.state, known.reason
        else:
            ended = report.read_if_intact(self.folder / job.folder / "report.json")
            if job.folder in self._folders or (ended and Identity(ended["config"]).hash != digest):
                job.folder = f"{job.folder}-{digest}"
        job.state, job.reason = _found_state(self.folder / job.folder, job)
        job.attempts, job.is_planned = 0, True  # each launch resets the retries
        self.jobs.append(job)
        self._by_hash[digest] = job
        self._folders.add(job.folder)
        return job

    def update(self, job: Job, state: str, reason: str | None = None) -> None:
        """Change a job's state, also in the file."""
        job.state, job.reason = state, reason
        line = job.change if job.folder in self._written else job.line
        self._written.add(job.folder)
        try:
            append(self.folder / LEDGER, _line(line))
        except FileNotFoundError:
            self.write()

    def write(self) -> None:
        """Write the whole file: one line for the arguments, one for each job."""
        jobs = [*self.jobs, *self.others.values()]
        lines = [_line({"arguments": self.arguments}), *(_line(job.line) for job in jobs)]
        atomic_write(self.folder / LEDGER, b"".join(lines))
        self._written = {job.folder for job in jobs}

    def _news(self) -> list[str]:
        complete = sum(job.is_complete for job in self.jobs)
        added = [job for job in self.jobs if job.state == "waiting" and not (self.folder / job.folder).exists()]
        begun = len(self.jobs) - complete - len(added)
        lines = [f"{self.folder}: {complete} of {len(self.jobs)} jobs are complete, {begun} started, {len(added)} new."]
        if self.others:
            lines.append(f"{len(self.others)} of an earlier grid stay in the folder and are not run.")
        return lines


def _line(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content) + "\n").encode()


def _found_state(run_dir: Path, known: Job) -> tuple[str, str | None]:
    """Return a job's state; its report overrides a ledger left by a killed process."""
    try:
        ended = report.read_report(run_dir / "report.json")
    except ReportError as error:
        return "failed", str(error)
    if ended is not None:
        reason = known.reason if ended["status"] == known.state else None
        return ended["status"], reason
    return ("stopped" if known.state in ("running", *COMPLETE) else known.state), known.reason


def _follow_images(folder: Path, known: Sequence[Job], planned: Sequence[Job]) -> None:
    """Update data.dir of known jobs if the folder of images has moved with its content."""
    before, now = ({job.config["data"]["dir"] for job in jobs} for jobs in (known, planned))
    if len(before) != 1 or len(now) != 1 or before == now or planned[0].config["data"]["name"] != "images":
        return
    reports = (report.read_if_intact(folder / job.folder / "report.json") for job in known)
    fingerprint = next((ended["data"]["fingerprint"] for ended in reports if ended), None)
    if fingerprint != datasets.load(data_section(planned[0].config["data"])).fingerprint:
        return
    for job in known:
        job.config["data"]["dir"] = planned[0].config["data"]["dir"]
