"""Runs as their folders tell of them: report.json of each, and cells.json of a sweep for what has none."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_research import config
from cifar_research.runs import ledger, report
from cifar_research.runs.ledger import LEDGER, Cell
from cifar_research.runtime.errors import ReportError

# Where a run keeps its own things; there is no other run in them.
_OWN = {"checkpoints", "tensorboard", "figures", ".hydra"}


@dataclass(frozen=True)
class Run:
    """One run. state: as in report.json, or `failed`, `running`, `waiting` from a sweep's cells.json.

    report: None if there is none; settings: as config.settings gives them; seed: the one it was drawn from; options:
    names by group, as far as they are known.
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
    def val_accuracy(self) -> float | None:
        """Return the validation accuracy of the best epoch, None without one."""
        return self.score("val/accuracy")

    @property
    def num_val(self) -> int:
        return self.report["data"]["sizes"]["val"] if self.report else 0

    def history(self) -> list[dict[str, Any]]:
        """Return the rows of history.csv; ReportError if it is missing or not as the report knows it."""
        return report.read_history(self.folder / "history.csv", (self.report or {}).get("history_sha256"))

    @property
    def sizes(self) -> dict[str, float]:
        """Return the model's `parameters`, `trainable` and `MFLOP` of a forward pass, those that the report knows."""
        flops = self.score("forward_flops")
        told = {"parameters": self.score("parameters/total"), "trainable": self.score("parameters/trainable"),
                "MFLOP": None if flops is None else round(flops / 1e6, 1)}  # fmt: skip
        return {name: value for name, value in told.items() if value is not None}

    def score(self, path: str) -> Any:
        """Return what the report has at `val/accuracy`, `seconds/total` …, None without it."""
        value = self.report
        for key in path.split("/"):
            value = value.get(key) if value else None
        return value


def find(places: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Return the runs in and below these folders or globs, in order, and warnings about what could not be read.

    ReportError if a place does not exist, or if there is no run in any of them.
    """
    folders: list[Path] = []
    for place in places:
        found = [Path(place)] if Path(place).is_dir() else sorted(Path(name) for name in glob.glob(place))
        found = [path for path in found if path.is_dir()]
        if not found:
            raise ReportError(f"{place}: there is no such folder; give the folder of a run or of a sweep")
        folders += found
    runs: dict[Path, Run] = {}
    warnings: list[str] = []
    for folder in folders:
        for path, names, files in os.walk(folder):
            names[:] = sorted(name for name in names if name not in _OWN)
            _read(Path(path), files, runs, warnings)
    if not runs:
        raise ReportError(
            f"{', '.join(places)}: {'; '.join(warnings) or 'there is no report.json in or below it'}; give the folder "
            "of a run or of a sweep"
        )
    _name_options(list(runs.values()))
    return list(runs.values()), warnings


def _read(folder: Path, files: Sequence[str], runs: dict[Path, Run], warnings: list[str]) -> None:
    if LEDGER in files:
        try:
            for cell in ledger.read(folder)[1]:
                if cell.is_planned:  # in the grid's order, before the walk meets them
                    run = _run(folder / cell.folder, cell, warnings)
                    runs.setdefault((folder / cell.folder).resolve(), run)
        except ReportError as error:
            warnings.append(str(error))
    if "report.json" in files and folder.resolve() not in runs and (run := _run(folder, None, warnings)):
        runs[folder.resolve()] = run


def _run(folder: Path, cell: Cell | None, warnings: list[str]) -> Run | None:
    found = None
    try:
        found = report.read_report(folder / "report.json")
    except ReportError as error:
        warnings.append(str(error))
    if found is None and cell is None:
        return None
    state, reason = (cell.state, cell.reason) if cell else (found["status"], None)
    if found is not None and found["status"] != "stopped":
        state = found["status"]
    made = found["config"] if found else cell.config
    options = config.option_names(found.get("options") if found else cell.overrides)
    return Run(folder, state, reason, made, found, config.settings(made), made["seed"], options)


def _name_options(runs: Sequence[Run]) -> None:
    """Set each group's value to the option's name as it was typed, where all runs have one that stands for one thing.

    A run that does not say has the option of those that it equals, if that is one.
    """
    for group in config.OPTION_GROUPS:
        options: dict[str, set[str]] = {}  # by what they stand for
        for run in runs:
            if group in run.options:
                options.setdefault(run.settings[group], set()).add(run.options[group])
        every = [option for found in options.values() for option in found]
        known = {value: next(iter(found)) for value, found in options.items() if len(found) == 1}
        names = [run.options.get(group, known.get(run.settings[group])) for run in runs]
        if None not in names and len(set(every)) == len(every):  # an option may have been given other transforms
            for run, name in zip(runs, names, strict=True):
                run.settings[group] = name


def varied(runs: Sequence[Run]) -> dict[str, str]:
    """Return {key: title} of what differs between runs that have it, `seed` aside, in the order of their configs.

    A title is the last part of the key, or all of it if two keys share that. What an option of a group brings with it,
    alike in all runs that have the option, goes without saying.
    """
    values: dict[str, dict[str, set[str]]] = {}  # by key and option
    for run in runs:
        for key, value in run.settings.items():
            group = key.partition(".")[0]
            is_of_option = "." in key and group in (*config.PLUGIN_GROUPS, "augmentation")
            is_of_option |= key.startswith(("training.phases.", "training.epochs"))
            option = run.settings[group] if is_of_option else ""
            values.setdefault(key, {}).setdefault(str(option), set()).add(str(value))
    keys = [
        key
        for key, found in values.items()
        if key != "seed" and max(map(len, found.values())) > 1  # within one option
    ]
    last = [key.rpartition(".")[2] for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}
