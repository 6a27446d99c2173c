"""Find runs and read their folders: report.json, or else the sweep's jobs.jsonl."""

from __future__ import annotations

import functools
import glob
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_research.config.identity import OPTION_GROUPS, PLUGIN_GROUPS, Identity, option_names
from cifar_research.config.schema import METRICS
from cifar_research.runs import ledger, report
from cifar_research.runs.ledger import LEDGER, Job
from cifar_research.runtime.errors import ReportError

_OWN_FOLDERS = {"checkpoints", "tensorboard", "figures", ".hydra", "wandb"}  # of a run; they contain no other runs


@dataclass(frozen=True)
class Run:
    """One run.

    state: as in report.json, or `failed`, `running`, `waiting` from a sweep's jobs.jsonl. report: None if missing.
    settings: see Identity.described. options: option names by config group, where known.
    """

    folder: Path
    state: str
    reason: str | None
    config: dict[str, Any]
    report: dict[str, Any] | None
    settings: dict[str, Any]
    seed: int
    options: dict[str, str]

    @property
    def identity(self) -> Identity:
        return Identity(self.config)  # not cached, as its keys would fill the memory of a large report

    def score(self, path: str) -> Any:
        """Return the report's value at a path such as `val/accuracy`, or None."""
        value = self.report
        for key in path.split("/"):
            value = value.get(key) if value else None
        return value

    def val(self, metric: str) -> float:
        """Return a validation metric of the best epoch, or nan."""
        value = self.score(f"val/{metric}")
        return math.nan if value is None else value

    @property
    def repeat(self) -> tuple[int, int | None]:
        """Return the seed and the fold, None without folds: what may differ between the runs of a setting."""
        return self.seed, self.config["data"]["fold"] if self.config["data"]["folds"] else None

    @property
    def is_scored(self) -> bool:
        """Return whether the run is completed and has a validation accuracy."""
        return self.state == "completed" and not math.isnan(self.val("accuracy"))

    @property
    def fingerprint(self) -> str | None:
        """Return the fingerprint of the run's images, or None."""
        return self.score("data/fingerprint")

    @property
    def sizes(self) -> dict[str, float | None]:
        """Return `parameters`, `trainable` and `MFLOP` of a forward pass, each None if unknown."""
        flops = self.score("forward_flops")
        return {
            "parameters": self.score("parameters/total"),
            "trainable": self.score("parameters/trainable"),
            "MFLOP": None if flops is None else round(flops / 1e6, 1),
        }

    @functools.cached_property
    def group(self) -> tuple[str, str | None]:
        """Return a key that completed or waiting runs share if they differ by seed or fold only."""
        if self.state not in ("completed", "waiting"):
            return str(self.folder), None
        # The fingerprint identifies the images, whatever their folder.
        ignored = {"seed", "data.fold", *(["data.dir"] if self.fingerprint else [])}
        flat = {key: value for key, value in self.identity.keys.items() if key not in ignored}
        values = f"{self.state} {sorted(flat.items())}"
        return hashlib.sha256(values.encode(errors="replace")).hexdigest(), self.fingerprint

    def history(self) -> list[dict[str, Any]]:
        """Return the rows of history.csv; ReportError if it is missing or its digest differs."""
        return report.read_history(self.folder / "history.csv", self.score("history_sha256"))


def name_of(folder: Path) -> str:
    """Return the name of a run's or sweep's folder; for a job, after its sweep's."""
    path = folder.resolve()
    return f"{path.parent.name}_{path.name}" if (path.parent / LEDGER).exists() else path.name


def find(patterns: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Return the runs in and below folders or globs, and warnings about unreadable files.

    ReportError if a folder does not exist, or if none contains a run.
    """
    runs: dict[Path, Run] = {}
    warnings: list[str] = []
    for pattern in patterns:
        folders = [Path(pattern)] if Path(pattern).is_dir() else [Path(name) for name in sorted(glob.glob(pattern))]
        folders = [folder for folder in folders if folder.is_dir()]
        if not folders:
            raise ReportError(f"{pattern}: there is no such folder; give the folder of a run or of a sweep")
        for folder in folders:
            for path, names, files in os.walk(folder):
                names[:] = sorted(set(names) - _OWN_FOLDERS)
                _read(Path(path), files, runs, warnings)
    if not runs:
        reason = "; ".join(warnings) or "there is no report.json in or below it"
        raise ReportError(f"{', '.join(patterns)}: {reason}; give the folder of a run or of a sweep")
    _name_options(list(runs.values()))
    return list(runs.values()), warnings


def _read(folder: Path, files: Sequence[str], runs: dict[Path, Run], warnings: list[str]) -> None:
    """Add the runs of a folder: its sweep's jobs, in the grid's order, and its own run."""
    jobs: dict[Path, Job | None] = {}
    if LEDGER in files:
        try:
            _, listed = ledger.read(folder) or ([], [])
            ledger.mark_stopped(folder, listed)
            jobs = {folder / job.folder: job for job in listed if job.is_planned}
        except ReportError as error:
            warnings.append(str(error))
    if "report.json" in files:
        jobs.setdefault(folder, None)
    for path, job in jobs.items():
        if path.resolve() not in runs and (run := _run(path, job, warnings)):
            runs[path.resolve()] = run


def _run(folder: Path, job: Job | None, warnings: list[str]) -> Run | None:
    """Return a run from its report, or else from its sweep; None if neither has it."""
    content = None
    try:
        content = report.read_report(folder / "report.json")
    except ReportError as error:
        warnings.append(str(error))
    if content is not None:
        values, choices = content["config"], content.get("options")
    elif job is not None:
        values, choices = job.config, job.overrides
    else:
        return None
    state, reason = (job.state, job.reason) if job else ("stopped", None)
    if content is not None and content["status"] != "stopped":
        state = content["status"]
    settings = Identity(values).described()
    return Run(folder, state, reason, values, content, settings, values["seed"], option_names(choices))


def _name_options(runs: Sequence[Run]) -> None:
    """Replace each group's setting by its option's name, if the names are unambiguous.

    A run without a name gets that of the runs with the same value, if they agree.
    """
    for group in OPTION_GROUPS:
        options: dict[str, set[str]] = {}  # by value
        for run in runs:
            if group in run.options:
                options.setdefault(run.settings[group], set()).add(run.options[group])
        unique = {value: next(iter(names)) for value, names in options.items() if len(names) == 1}
        names = [run.options.get(group, unique.get(run.settings[group])) for run in runs]
        num_names = sum(map(len, options.values()))
        if None not in names and len(set().union(*options.values())) == num_names:  # transforms may be overridden
            for run, name in zip(runs, names, strict=True):
                run.settings[group] = name


_SCORES = (
    *(f"{split}/{name}" for split in ("val", "test") for name in METRICS), "train/accuracy", "train/loss", "best_epoch",
    "epochs", "steps", "seconds/total", "images_per_second", "parameters/total", "data/fingerprint",
)  # fmt: skip


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a flat row for each run, all with the same keys; lists are text, gaps None."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "seed")
    return [
        {"folder": str(run.folder), "status": run.state, "reason": run.reason, "seed": run.seed}
        | {path: run.score(path) for path in _SCORES}
        | {key: str(value) if isinstance(value := run.settings.get(key), (list, dict)) else value for key in keys}
        for run in runs
    ]


def varied(runs: Sequence[Run]) -> dict[str, str]:
    """Return {key: title} of the settings that differ between runs, except `seed` and `data.fold`.

    A key that varies with its group's option only is left out. A title is the key, or its last part if unique.
    """
    values: dict[str, dict[str, set[str]]] = {}  # by key and option
    for run in runs:
        for key, value in run.settings.items():
            group, _, rest = key.partition(".")
            is_of_option = rest and group in (*PLUGIN_GROUPS, "augmentation")
            is_of_option = is_of_option or key.startswith(("training.phases.", "training.epochs"))
            option = str(run.settings[group]) if is_of_option else ""
            values.setdefault(key, {}).setdefault(option, set()).add(str(value))
    keys = [
        key
        for key, options in values.items()
        if key not in ("seed", "data.fold") and max(map(len, options.values())) > 1
    ]
    last = [key.rpartition(".")[2] for key in keys]
    return {key: title if last.count(title) == 1 else key for key, title in zip(keys, last, strict=True)}
