"""The cells of a sweep: which there are, what their folders are called, and the ledger of how they went."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from cifar_research import config, report

LEDGER = "cells.json"
COMPLETE = ("completed", "diverged", "pruned")
STATES = ("waiting", "running", "stopped", "failed", *COMPLETE)
_LONGEST_NAME = 120


@dataclass
class Cell:
    """One run of a sweep: the words of its command line, and how it went.

    folder: its name in the sweep's folder; config: as composed; is_planned: false for one of an earlier grid.
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


def without_sweeps(arguments: Sequence[str]) -> list[str]:
    """Return the words of a command line that compose, which those with several values do not."""
    return [
        word
        for word, override in zip(_words(arguments), _parse(_words(arguments)), strict=True)
        if not override.is_sweep_override()
    ]


def plan(cfg: DictConfig, arguments: Sequence[str]) -> list[Cell]:
    """Return the cells that hydra.sweeper.params and the arguments span, the last key varying fastest.

    A key on the command line replaces the values that params give it. ConfigError, naming the cell, if one of them
    could not work; two that compute the same are one.
    """
    _refuse_lost_settings(cfg, arguments)
    params = OmegaConf.to_container(cfg.hydra.sweeper.get("params") or OmegaConf.create({}), resolve=True)
    words = [f"{key}={value}" for key, value in params.items()]
    words += [word for word in _words(arguments) if not re.match(r"[+~]*(sweep|hydra)\b", word)]
    try:
        (rows,) = BasicSweeper.split_arguments(_parse(words), None)
    except HydraException as error:
        raise config.ConfigError(f"{error}; give a list of values: key=a,b,c") from error
    varied = _varied_keys(rows)
    more = [word for word in _words(arguments) if word.startswith(("hydra.searchpath=", "sweep."))]
    cells: dict[str, Cell] = {}
    for row in rows:
        cell_cfg = _checked([*row, *more], _folder_name(row, varied))
        digest = config.config_hash(cell_cfg)
        if digest not in cells:
            folder = _folder_name(row, varied)
            if any(cell.folder == folder for cell in cells.values()):
                folder = f"{folder}-{digest}"
            cells[digest] = Cell(folder, row, OmegaConf.to_container(cell_cfg, resolve=True))
    return list(cells.values())


def _words(arguments: Sequence[str]) -> list[str]:
    return [word for word in arguments if not word.startswith("-")]


def _parse(words: Sequence[str]) -> list[Any]:
    try:
        return OverridesParser.create().parse_overrides(list(words))
    except config.HYDRA_ERRORS as error:
        raise config.ConfigError(config.explain(error, list(words))) from error


def _checked(words: list[str], name: str) -> DictConfig:
    try:
        cfg = config.compose(words)
        config.check(cfg)
    except config.ConfigError as error:
        raise config.ConfigError("\n".join(f"{name}: {line}" for line in str(error).splitlines())) from error
    return cfg


def _refuse_lost_settings(cfg: DictConfig, arguments: Sequence[str]) -> None:
    """A cell's command line holds what is in params, so what a sweep's file sets beside them would be lost."""
    rest = [word for word in without_sweeps(arguments) if not word.startswith("sweep=")]
    alone = config.flatten(config.compose(rest))
    for key, value in config.flatten({key: value for key, value in cfg.items() if key != "hydra"}).items():
        if key != "name" and not key.startswith("sweep.") and alone.get(key, ...) != value:
            raise config.ConfigError(
                f"{key}: the sweep's file sets it outside of hydra.sweeper.params, where no cell sees it; move it there"
            )


def _varied_keys(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the keys with more than one value; all of them if none has."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for word in row:
            key, _, value = word.partition("=")
            values.setdefault(key, set()).add(value)
    return [key for key, found in values.items() if len(found) > 1] or list(values)


def _folder_name(row: Sequence[str], varied: Sequence[str]) -> str:
    """Return `pooling=max,dropout=0.3`: what the cell has of the varied keys, fit for a file system."""
    short = [key.lstrip("+~").rpartition(".")[2] for key in varied]
    parts = []
    for word in row:
        key, _, value = word.partition("=")
        if key in varied:
            last = key.lstrip("+~").rpartition(".")[2]
            parts.append(f"{last if short.count(last) == 1 else key.lstrip('+~')}={value}")
    whole = ",".join(parts) or "run"
    name = re.sub(r"[^\w.=,+-]+", "_", re.sub(r"[\[\]'\"{} ]", "", whole)).strip("._")
    if len(name.encode()) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME // 2]}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"
    return name


@dataclass
class Ledger:
    """What a sweep's folder knows of its cells; written anew, whole, at each change.

    arguments: the sweep's own words; cells: those of its grid, in order; others: of an earlier grid in this folder;
    news: lines for the user about what was found.
    """

    folder: Path
    arguments: list[str]
    cells: list[Cell]
    others: list[Cell]
    news: list[str] = field(default_factory=list)

    @property
    def searchpath(self) -> list[str]:
        return [word for word in self.arguments if word.startswith("hydra.searchpath=")]

    @classmethod
    def open(cls, folder: Path, arguments: Sequence[str], planned: Sequence[Cell]) -> Ledger:
        """Hold the planned cells against what the folder has already: one that computes the same keeps its folder."""
        found = read(folder)
        before = {config.config_hash(cell.config): cell for cell in found[1]} if found else {}
        taken = {cell.folder for cell in before.values()}
        cells = []
        for cell in planned:
            digest = config.config_hash(cell.config)
            known = before.pop(digest, None)
            if known is not None:
                cell.folder, cell.attempts = known.folder, known.attempts
                cell.state, cell.reason = _found_state(folder / cell.folder, known)
            else:
                if cell.folder in taken or _is_of_another(folder / cell.folder, digest):
                    cell.folder = f"{cell.folder}-{digest}"
                cell.state, cell.reason = _found_state(folder / cell.folder, cell)
            cells.append(cell)
        others = list(before.values())
        for cell in others:
            cell.is_planned = False
        ledger = cls(folder, list(arguments), cells, others)
        if found:
            ledger.news = ledger._news()
        for cell in cells:
            if not cell.is_complete:
                cell.attempts = 0  # each launch gives a cell its retries anew
        ledger.write()
        return ledger

    def update(self, cell: Cell, state: str, reason: str | None = None) -> None:
        cell.state, cell.reason = state, reason
        self.write()

    def write(self) -> None:
        content = {"arguments": self.arguments, "cells": [asdict(cell) for cell in [*self.cells, *self.others]]}
        report.atomic_write(self.folder / LEDGER, (json.dumps(content, indent=1) + "\n").encode())

    def _news(self) -> list[str]:
        complete = sum(cell.is_complete for cell in self.cells)
        added = [cell for cell in self.cells if cell.state == "waiting" and not (self.folder / cell.folder).exists()]
        begun = len(self.cells) - complete - len(added)
        lines = [f"{self.folder}: {complete} of {len(self.cells)} cells are complete, {begun} begun, {len(added)} new."]
        if self.others:
            lines.append(f"{len(self.others)} cells of an earlier grid stay in the folder and are not run.")
        return lines


def read(folder: Path) -> tuple[list[str], list[Cell]] | None:
    """Return the arguments and the cells of the sweep in a folder, None if there is none; ReportError if damaged."""
    path = folder / LEDGER
    try:
        content = json.loads(path.read_bytes())
        cells = [Cell(**cell) for cell in content["cells"]]
        arguments = content["arguments"]
        if not all(isinstance(word, str) for word in arguments):
            raise TypeError("its arguments are no words")
        for cell in cells:
            if cell.state not in STATES or not isinstance(cell.config.get("augmentation"), dict):
                raise TypeError(f"its cell {cell.folder} is incomplete")
        return arguments, cells
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise report.ReportError(
            f"{path}: cannot be read ({error.strerror}); choose another hydra.sweep.dir"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise report.ReportError(
            f"{path}: is damaged ({error}); delete it and give the sweep's command again with this hydra.sweep.dir, "
            "which then finds its runs by their folders"
        ) from error


def _is_of_another(run_dir: Path, digest: str) -> bool:
    """Say whether a folder holds the report of a run that computes something else."""
    try:
        found = report.read_report(run_dir / "report.json")
    except report.ReportError:
        return False  # which the cell will say itself
    return found is not None and config.config_hash(found["config"]) != digest


def _found_state(run_dir: Path, known: Cell) -> tuple[str, str | None]:
    """Return how a cell of an earlier launch stands; its report outlives a ledger that a kill left behind."""
    try:
        found = report.read_report(run_dir / "report.json")
    except report.ReportError as error:
        return "failed", str(error)
    if found is not None:
        reason = known.reason if found["status"] == known.state else None
        return found["status"], reason
    return ("stopped" if known.state in ("running", *COMPLETE) else known.state), known.reason
