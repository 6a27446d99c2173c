"""The cells of a sweep: which there are, what their folders are called, and the ledger of how they went."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cifar_research import config
from cifar_research.config import composition, messages, trust
from cifar_research.data import datasets
from cifar_research.runs import report
from cifar_research.runtime.errors import ConfigError, ReportError

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


def base(arguments: Sequence[str]) -> DictConfig:
    """Return what a sweep's words compose but for those with several values: its hydra section, its name, its seed.

    A key that an option has which only the cells choose, as in backbone=a,b backbone.size=1, is left to the cells, which
    check it. ConfigError if the rest does not compose.
    """
    words = _words(arguments)
    try:
        return config.compose(words, with_hydra=True, mode=RunMode.MULTIRUN)
    except ConfigError:
        kept = [word for word in words if not re.match(r"[+~]*(?!hydra\.|sweep\.)\w+\.", word)]
        if kept == words:
            raise
        return config.compose(kept, with_hydra=True, mode=RunMode.MULTIRUN)


@dataclass(frozen=True)
class Plan:
    """What a sweep's command line says: the words that all its cells have, and those with several values, as parsed."""

    fixed: list[str]
    swept: list[Any]
    context: list[str]  # where options lie, and the sweep's own settings

    @classmethod
    def of(cls, cfg: DictConfig, arguments: Sequence[str]) -> Plan:
        """Read hydra.sweeper.params and the arguments; a key on the command line replaces what params give it."""
        _refuse_lost_settings(cfg, arguments)
        _refuse_lost_words(arguments)
        params = OmegaConf.to_container(cfg.hydra.sweeper.get("params") or OmegaConf.create({}), resolve=True)
        for key in params:
            if re.match(r"[+~\s]*(allow_targets|hydra)\b", str(key)):
                raise ConfigError(
                    f"hydra.sweeper.params: {key} is not for a sweep's file to say; give it on the command line"
                )
        words = [f"{key}={'null' if value is None else value}" for key, value in params.items()]
        words += [word for word in _words(arguments) if not re.match(r"[+~]*(sweep|hydra)\b", word)]
        try:
            words = composition.with_globs_expanded(composition.with_texts(words), arguments)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        found: dict[str, tuple[str, Any]] = {}
        for word, override in zip(words, _parse(words), strict=True):
            key = override.get_key_element().removeprefix("++")
            if key in found and found[key][0].startswith("++") and not word.startswith("++"):
                word = f"++{word}"  # what it replaces has added the key
                (override,) = _parse([word])
            found[key] = word, override
        context = [word for word in _words(arguments) if word.startswith(("hydra.searchpath=", "sweep."))]
        if any(override.is_sweep_override() for key, (_, override) in found.items() if key == "allow_targets"):
            raise ConfigError("allow_targets: takes one list for all cells of a sweep, allow_targets=[my_lab]")
        return cls(
            [word for word, override in found.values() if not override.is_sweep_override()],
            [override for _, override in found.values() if override.is_sweep_override()],
            context,
        )

    def grid(self) -> list[Cell]:
        """Return a cell for each combination, the last key varying fastest; two that compute the same are one.

        ConfigError, naming the cell, if one of them could not work.
        """
        for override in self.swept:
            if not override.is_discrete_sweep():
                raise ConfigError(
                    f"{override.input_line}: a grid takes lists of values, key=a,b,c; an interval is for a search, "
                    "sweep.trials=<how many>"
                )
        choices = [[f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()] for one in self.swept]
        cells: dict[str, Cell] = {}
        for row in itertools.product(*choices):
            cell = self.cell(row)
            digest = config.config_hash(cell.config)
            if any(other.folder == cell.folder for other in cells.values()):
                cell.folder = f"{cell.folder}-{digest}"
            if cells.setdefault(digest, cell) is not cell:
                self._refuse_free(cell)
        return list(cells.values())

    def _refuse_free(self, cell: Cell) -> None:
        """Refuse keys that vary and change nothing, where a cell is one that there is already."""
        for override in self.swept:
            if f"{override.key_or_group}.".startswith(config.free_prefixes(cell.config)):
                raise ConfigError(
                    f"{override.input_line}: changes nothing that a run computes, so that these cells would be one; give "
                    "one value, and a sweep for each"
                )

    def cell(self, row: Sequence[str]) -> Cell:
        """Return the cell with these values of what varies; ConfigError, naming it, if it could not work."""
        name = _folder_name(row or self.fixed)
        overrides = [*self.fixed, *row]
        try:
            cfg = config.compose([*overrides, *self.context])
            config.check(cfg)
        except ConfigError as error:
            raise ConfigError("\n".join(f"{name}: {line}" for line in str(error).splitlines())) from error
        return Cell(name, overrides, OmegaConf.to_container(cfg, resolve=True))


def _words(arguments: Sequence[str]) -> list[str]:
    return [word for word in arguments if not word.startswith("-")]


def _parse(words: Sequence[str]) -> list[Any]:
    try:
        return OverridesParser.create().parse_overrides(list(words))
    except composition.HYDRA_ERRORS as error:
        raise ConfigError(messages.explain(error, list(words))) from error


def _refuse_lost_settings(cfg: DictConfig, arguments: Sequence[str]) -> None:
    """A cell's command line holds what is in params, so what a sweep's file sets beside them would be lost."""
    rest = [word for word in composition.without_sweeps(_words(arguments)) if not word.startswith("sweep=")]
    alone, whole = (
        config.flatten({key: value for key, value in one.items() if key != "hydra"}) for one in (base(rest), cfg)
    )
    for key, value in whole.items():
        if key != "name" and not key.startswith("sweep.") and alone.get(key, ...) != value:
            raise ConfigError(
                f"{key}: the sweep's file sets it outside of hydra.sweeper.params, where no cell sees it; move it there"
            )


def _refuse_lost_words(arguments: Sequence[str]) -> None:
    """Refuse what neither the sweep nor its cells would see."""
    for word, override in zip(_words(arguments), _parse(_words(arguments)), strict=True):
        key = override.key_or_group
        if not re.match(r"(sweep|hydra)\b", key):
            continue
        if override.is_sweep_override():
            raise ConfigError(f"{word}: takes one value, and says how all cells are run; give one")
        if key.startswith("hydra") and not trust.is_of_sweep(key):
            raise ConfigError(f"{word}: is not taken by a sweep, whose cells have folders and logs of their own")


def _folder_name(row: Sequence[str]) -> str:
    """Return `pooling=max,dropout=0.3` for words that vary, fit for a file system."""
    pairs = [word.lstrip("+~").partition("=")[::2] for word in row]
    last = [key.rpartition(".")[2] for key, _ in pairs]
    parts = [f"{end if last.count(end) == 1 else key}={value}" for (key, value), end in zip(pairs, last, strict=True)]
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
    def context(self) -> list[str]:
        """Return where options lie and whom the command allows to be called, which a cell's own words may lack."""
        return [word for word in self.arguments if word.startswith(("hydra.searchpath=", "allow_targets="))]

    @classmethod
    def open(cls, folder: Path, arguments: Sequence[str], planned: Sequence[Cell] | None) -> Ledger:
        """Hold the planned cells against what the folder has already, all of which stays if planned is None.

        Nothing is written before `write`.
        """
        found = read(folder)
        ledger = cls(folder, list(arguments), [], found[1] if found else [])
        _follow_images(folder, ledger.others, planned or [])
        for cell in list(ledger.others) if planned is None else planned:
            ledger.add(cell)
        for cell in ledger.others:
            cell.is_planned = False
        if found:
            ledger.news = ledger._news()
        return ledger

    def add(self, cell: Cell) -> Cell:
        """Take a cell in; one that computes the same as another of the folder is that one, and keeps its folder."""
        digest = config.config_hash(cell.config)
        for other in self.cells:
            if config.config_hash(other.config) == digest:
                return other
        known = next((one for one in self.others if config.config_hash(one.config) == digest), None)
        if known is not None:
            self.others.remove(known)
            cell.folder = known.folder
            cell.state, cell.reason = known.state, known.reason
        elif any(one.folder == cell.folder for one in [*self.cells, *self.others]) or _is_of_another(
            self.folder / cell.folder, digest
        ):
            cell.folder = f"{cell.folder}-{digest}"
        cell.state, cell.reason = _found_state(self.folder / cell.folder, cell)
        cell.attempts, cell.is_planned = 0, True  # each launch gives a cell its retries anew
        self.cells.append(cell)
        return cell

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
            lines.append(f"{len(self.others)} of an earlier grid stay in the folder and are not run.")
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
        for cell in cells:
            cell.overrides = trust.of_a_file(cell.overrides)
        return arguments, cells
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ReportError(
            f"{path}: cannot be read ({error.strerror}); choose another hydra.sweep.dir"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ReportError(
            f"{path}: is damaged ({error}); delete it and give the sweep's command again with this hydra.sweep.dir, "
            "which then finds its runs by their folders"
        ) from error


def _follow_images(folder: Path, known: Sequence[Cell], planned: Sequence[Cell]) -> None:
    """Let the known cells of a folder of images that has moved be of where it is now, if it holds the same images."""
    before, now = ({cell.config.get("data", {}).get("dir") for cell in cells} for cells in (known, planned))
    if len(before) != 1 or len(now) != 1 or before == now or planned[0].config["data"]["name"] != "images":
        return
    fingerprint = None
    for cell in known:
        with contextlib.suppress(ReportError):  # which the cell will say itself
            ended = report.read_report(folder / cell.folder / "report.json")
            fingerprint = fingerprint or (ended and ended["data"]["fingerprint"])
    if fingerprint != datasets.load(OmegaConf.create(planned[0].config["data"])).fingerprint:
        return
    for cell in known:
        cell.config["data"]["dir"] = planned[0].config["data"]["dir"]


def _is_of_another(run_dir: Path, digest: str) -> bool:
    """Say whether a folder holds the report of a run that computes something else."""
    try:
        found = report.read_report(run_dir / "report.json")
    except ReportError:
        return False  # which the cell will say itself
    return found is not None and config.config_hash(found["config"]) != digest


def _found_state(run_dir: Path, known: Cell) -> tuple[str, str | None]:
    """Return how a cell of an earlier launch stands; its report outlives a ledger that a kill left behind."""
    try:
        found = report.read_report(run_dir / "report.json")
    except ReportError as error:
        return "failed", str(error)
    if found is not None:
        reason = known.reason if found["status"] == known.state else None
        return found["status"], reason
    return ("stopped" if known.state in ("running", *COMPLETE) else known.state), known.reason
