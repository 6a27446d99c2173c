"""The ledger of a sweep: how its jobs went, written at each change."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cifar_research.config.identity import Identity
from cifar_research.config.schema import data_section
from cifar_research.data import datasets
from cifar_research.runs import report
from cifar_research.runs.ledger import COMPLETE, LEDGER, Cell, read
from cifar_research.runtime.errors import ReportError
from cifar_research.runtime.files import atomic_write


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
    _by_hash: dict[str, Cell] = field(default_factory=dict)
    _others_by_hash: dict[str, Cell] = field(default_factory=dict)
    _folders: set[str] = field(default_factory=set)

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
        known = found[1] if found else []
        _follow_images(folder, known, planned or [])
        by_hash = {cell.identity.hash: cell for cell in known}
        ledger = cls(folder, list(arguments), [], known, [], {}, by_hash, {cell.folder for cell in known})
        for cell in list(ledger.others) if planned is None else planned:
            ledger.add(cell)
        for cell in ledger.others:
            cell.is_planned = False
        if found:
            ledger.news = ledger._news()
        return ledger

    def add(self, cell: Cell) -> Cell:
        """Take a cell in; one that computes the same as another of the folder is that one, and keeps its folder."""
        digest = cell.identity.hash
        if digest in self._by_hash:
            return self._by_hash[digest]
        known = self._others_by_hash.pop(digest, None)
        if known is not None:
            self.others.remove(known)
            cell.folder = known.folder
            cell.state, cell.reason = known.state, known.reason
        elif cell.folder in self._folders or _is_of_another(self.folder / cell.folder, digest):
            cell.folder = f"{cell.folder}-{digest}"
        cell.state, cell.reason = _found_state(self.folder / cell.folder, cell)
        cell.attempts, cell.is_planned = 0, True  # each launch gives a cell its retries anew
        self.cells.append(cell)
        self._by_hash[digest] = cell
        self._folders.add(cell.folder)
        return cell

    def update(self, cell: Cell, state: str, reason: str | None = None) -> None:
        cell.state, cell.reason = state, reason
        self.write()

    def write(self) -> None:
        content = {"arguments": self.arguments, "cells": [asdict(cell) for cell in [*self.cells, *self.others]]}
        atomic_write(self.folder / LEDGER, (json.dumps(content, indent=1) + "\n").encode())

    def _news(self) -> list[str]:
        complete = sum(cell.is_complete for cell in self.cells)
        added = [cell for cell in self.cells if cell.state == "waiting" and not (self.folder / cell.folder).exists()]
        begun = len(self.cells) - complete - len(added)
        lines = [f"{self.folder}: {complete} of {len(self.cells)} cells are complete, {begun} begun, {len(added)} new."]
        if self.others:
            lines.append(f"{len(self.others)} of an earlier grid stay in the folder and are not run.")
        return lines


def _is_of_another(run_dir: Path, digest: str) -> bool:
    """Say whether a folder holds the report of a run that computes something else."""
    try:
        found = report.read_report(run_dir / "report.json")
    except ReportError:
        return False  # which the cell will say itself
    return found is not None and Identity(found["config"]).hash != digest


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


def _follow_images(folder: Path, known: Sequence[Cell], planned: Sequence[Cell]) -> None:
    """Let the known cells of a folder of images that has moved be of where it is now, if it holds the same images."""
    before, now = ({cell.config["data"]["dir"] for cell in cells} for cells in (known, planned))
    if len(before) != 1 or len(now) != 1 or before == now or planned[0].config["data"]["name"] != "images":
        return
    fingerprint = None
    for cell in known:
        with contextlib.suppress(ReportError):  # which the cell will say itself
            ended = report.read_report(folder / cell.folder / "report.json")
            fingerprint = fingerprint or (ended and ended["data"]["fingerprint"])
    if fingerprint != datasets.load(data_section(planned[0].config["data"])).fingerprint:
        return
    for cell in known:
        cell.config["data"]["dir"] = planned[0].config["data"]["dir"]
