"""Two runs or sweeps side by side: what differs, their results with a test, their curves."""

from __future__ import annotations

import contextlib
import itertools
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from cifar_research.comparison import runs as reading
from cifar_research.comparison import statistics
from cifar_research.comparison.ranking import NO_SPREAD, OVERLAP, Comparison, Row, has_several_losses, monitored
from cifar_research.comparison.runs import Run, varied
from cifar_research.config.identity import flatten
from cifar_research.display.document import Part, Section
from cifar_research.display.tables import Table, text_of
from cifar_research.runs.ledger import LEDGER
from cifar_research.runs.metrics import SHARES, difference_interval, display_name
from cifar_research.runtime import programs
from cifar_research.runtime.errors import ReportError

CURVES = {"loss": "loss", "accuracy": "accuracy", "val_loss": "val loss", "val_accuracy": "val accuracy"}
Curve = list[dict[str, float | None]]  # of these columns, a row an epoch
_MOST_VALUES, _MOST_LETTERS = 5, 60  # of a key; of a value
_MOST_EPOCHS = 10  # in the table of curves
_PARTS = ("config", "data", "versions", "hardware", "code")
_DATA = ("name", "fingerprint", "sizes", "classes", "note", "left_out")
_NUMBERS = {
    "train accuracy": ("train/accuracy", ".4f"), "train loss": ("train/loss", ".4f"), "val loss": ("val/loss", ".4f"),
    "test loss": ("test/loss", ".4f"), "best epoch": ("best_epoch", "g"), "epochs": ("epochs", "g"),
    "seconds": ("seconds/total", ",.0f"), "images/s": ("images_per_second", ",.0f"),
    "peak memory, bytes": ("peak_memory_bytes", ",.0f"), "parameters": ("parameters/total", ",.0f"),
    "FLOPs": ("forward_flops", ",.0f"),
}  # fmt: skip
_NO_TEST = "none: a single seed"
_NOTE = (
    "± is Student's 95 % interval over seeds or folds. Brackets are 95 % intervals of one run's images, which do not include the "
    "spread of the seeds: of its accuracy (Wilson), and of the difference (Newcombe 1998)."
)


class Pair(NamedTuple):
    """A row of A and one of B with the same values of `settings`, {title: value}."""

    settings: Mapping[str, str]
    rows: tuple[Row, Row]


@dataclass(frozen=True)
class Diff:
    """Two folders, A and B, each of a run or of a sweep."""

    folders: tuple[Path, Path]
    sides: tuple[Comparison, Comparison]

    @cached_property
    def pairs(self) -> tuple[list[Pair], str | None]:
        """Return the rows to compare, A's best first, and a sentence about the others.

        They have the same values of all settings that vary in A or B; else of those that have the same values in both;
        else they are the best row of each.
        """
        rows = [
            [row for row in side.leaderboard if row.runs[0].state == "completed"] or side.leaderboard
            for side in self.sides
        ]
        varying = self.sides[0].titles | self.sides[1].titles
        titles = {key: title for key, title in varied(self._runs).items() if key in varying}
        common = [key for key in titles if len({frozenset(_value(row, key) for row in each) for each in rows}) == 1]
        for keys in (list(titles), common):
            first, second = ({tuple(_value(row, key) for key in keys): row for row in each} for each in rows)
            shared = [values for values in first if values in second]
            if shared and (len(first), len(second)) == (len(rows[0]), len(rows[1])):
                left = len(first) - len(shared), len(second) - len(shared)
                note = f"Settings without a counterpart: {left[0]} of A, {left[1]} of B." if any(left) else None
                names = [titles[key] for key in keys]
                pairs = [Pair(dict(zip(names, key, strict=True)), (first[key], second[key])) for key in shared]
                return pairs, note
        note = "No setting of A corresponds to one of B, so the best of each by validation are compared."
        return [Pair({}, (rows[0][0], rows[1][0]))], note

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Return the curves of the first pair, by side."""
        return {name: _curve(row) for name, row in zip("AB", self.pairs[0][0].rows, strict=True)}

    @property
    def _runs(self) -> list[Run]:
        return [run for side in self.sides for run in side.runs]

    def sections(self) -> list[Section]:
        """Return the differences, the results and the curves, as tables and sentences."""
        return [self._differences(), self._results(), self._curves()]

    def _differences(self) -> Section:
        facts = [_facts(side.runs) for side in self.sides]
        rows: Table = [["part", "what", "A", "B"]]
        for part, what in sorted(facts[0] | facts[1], key=lambda fact: _PARTS.index(fact[0])):
            first, second = (list(each.get((part, what), {"–": None})) for each in facts)
            if set(first) != set(second):
                rows.append([part, what, _joined(first), _joined(second)])
        parts: list[Part] = [_described(*side) for side in zip("AB", self.folders, self.sides, strict=True)]
        same = dict.fromkeys(part for part, _ in facts[0] if part not in {row[0] for row in rows})
        parts += [rows] if len(rows) > 1 else []
        parts += [f"The same: {', '.join(same)}."] if same else []
        return Section("What differs", parts)

    def _results(self) -> Section:
        pairs, note = self.pairs
        table = [[*pairs[0].settings, "score", "A", "A 95 %", "B", "B 95 %", "B - A", "test of the difference"]]
        metrics = dict.fromkeys(["accuracy", monitored(self._runs)])
        for pair, metric, split in itertools.product(pairs, metrics, ("val", "test")):
            path, (a, b) = f"{split}/{metric}", pair.rows
            if metric == "loss" and has_several_losses([*a.runs, *b.runs]):
                continue
            if (first := a.mean(path)) is not None and (second := b.mean(path)) is not None:
                cells = [f"{split} {display_name(metric)}", f"{first:.4f}", a.interval(path), f"{second:.4f}"]
                cells += [b.interval(path), f"{second - first:+.4f}", _test(a, b, path)]
                table.append([*pair.settings.values(), *cells])
        parts: list[Part] = [table, _NOTE] if len(table) > 1 else ["A or B has no accuracy yet."]
        if any(row.overlap for pair in pairs for row in pair.rows):
            parts.append(OVERLAP)
        if len(pairs) == 1:
            numbers = [
                [name, *(text_of(row.mean(path), form) for row in pairs[0].rows)]
                for name, (path, form) in _NUMBERS.items()
            ]
            parts.append([["", "A", "B"], *numbers])
        elif any(row[-1] != _NO_TEST for row in table[1:]):
            parts.append(f"The tests are not adjusted for {len(pairs)} comparisons.")
        parts += [note] if note else []
        if len(self._runs) == 2 and all(run.score("test/accuracy") is not None for run in self._runs):
            command = shlex.join(
                [programs.program("evaluate"), str(self.folders[0]), "--against", str(self.folders[1])]
            )
            parts.append(f"McNemar's test compares them image by image: {command}")
        return Section("Results", parts)

    def _curves(self) -> Section:
        num = max(map(len, self.curves.values()))
        if not num:
            return Section("Curves", ["A and B have no history.csv that can be read."])
        table = [["epoch", *(f"{side} {title}" for title in CURVES.values() for side in self.curves)]]
        for i in sorted({round(step * (num - 1) / (_MOST_EPOCHS - 1)) for step in range(_MOST_EPOCHS)}):
            cells = [rows[i][column] if i < len(rows) else None for column in CURVES for rows in self.curves.values()]
            table.append([str(i + 1), *(text_of(cell, ".4f") for cell in cells)])
        named = ", ".join(f"{title} {value}" for title, value in self.pairs[0][0].settings.items())
        return Section(f"Curves of {named}, means over the seeds" if named else "Curves", [table])


def read(places: Sequence[str]) -> tuple[Diff, list[str]]:
    """Return two folders' runs, and warnings about unreadable files.

    ReportError if one is not the folder of a run or sweep, or has no run that can be read, or if both are the same.
    """
    folders = Path(places[0]), Path(places[1])
    for folder in folders:
        if folder.is_dir() and not any((folder / name).exists() for name in ("report.json", LEDGER)):
            raise ReportError(
                f"{folder}: has no report.json or {LEDGER}; give the folder of a run that has ended, or of a sweep"
            )
    if folders[0].resolve() == folders[1].resolve():
        raise ReportError(f"--diff: {folders[0]} and {folders[1]} are the same folder; give two")
    # Both at once, so that options have the same names.
    runs, warnings = reading.find(places)
    sides = [[run for run in runs if run.folder.resolve().is_relative_to(folder.resolve())] for folder in folders]
    for folder, side in zip(folders, sides, strict=True):
        if not side:
            raise ReportError(f"{folder}: has no run that can be read; {'; '.join(warnings)}")
    return Diff(folders, (Comparison(sides[0]), Comparison(sides[1]))), warnings


def _facts(runs: Sequence[Run]) -> dict[tuple[str, str], dict[str, None]]:
    """Return {(part, name): values as text, in order}."""
    facts: dict[tuple[str, str], dict[str, None]] = {}
    for run in runs:
        parts: dict[str, Mapping[str, Any]] = {"config": run.settings}
        if run.report:
            git = run.report.get("git")
            code = {"commit": "not a git checkout"}
            if git:
                changes = git.get("not_kept") or (git.get("changes_sha256") or "none")[:12]  # or a digest of them
                code = {"commit": git["commit"][:12], "changes": changes}
            data = flatten({key: run.score(f"data/{key}") for key in _DATA})
            versions, hardware = run.report.get("versions", {}), run.report.get("hardware", {})
            parts |= {"data": data, "versions": versions, "hardware": hardware, "code": code}
        for part, values in parts.items():
            for name, value in values.items():
                facts.setdefault((part, name), {})[text_of(value)] = None
    return facts


def _joined(values: Sequence[str]) -> str:
    short = [value if len(value) <= _MOST_LETTERS else f"{value[:_MOST_LETTERS]}…" for value in values[:_MOST_VALUES]]
    return ", ".join([*short, *([f"… ({len(values)} values)"] if len(values) > len(short) else [])])


def _described(name: str, folder: Path, side: Comparison) -> str:
    counts = Counter(run.state for run in side.runs)
    return f"{name}: {folder}, {', '.join(f'{num} {state}' for state, num in counts.items())}"


def _value(row: Row, key: str) -> str:
    return text_of(row.runs[0].settings.get(key))


def _curve(row: Row) -> Curve:
    """Return the mean over a row's runs, for the epochs that all have."""
    histories = []
    for run in row.runs:
        with contextlib.suppress(ReportError):
            histories.append(run.history())
    epochs = [{column: [row[column] for row in rows] for column in CURVES} for rows in zip(*histories, strict=False)]
    return [
        {column: None if None in values else sum(values) / len(values) for column, values in epoch.items()}
        for epoch in epochs
    ]


def _test(first: Row, second: Row, path: str) -> str:
    """Return the t-test over seeds, or for accuracies of single runs the interval of B - A."""
    a, b = ({run.repeat: run.score(path) for run in row.runs if run.score(path) is not None} for row in (first, second))
    split, _, metric = path.partition("/")
    if max(len(a), len(b)) == 1 and metric in SHARES:
        sizes = [row.runs[0].score(f"data/sizes/{split}") for row in (second, first)]
        low, high = difference_interval(*b.values(), *a.values(), *sizes)
        return f"[{low:+.4f}, {high:+.4f}], {'within' if low <= 0 <= high else 'beyond'} noise"
    if min(len(a), len(b)) == 1:
        return _NO_TEST
    overlap = max(first.overlap, second.overlap)
    is_paired, p = a.keys() == b.keys(), statistics.t_test(a, b, overlap)
    unit = "folds" if overlap else "seeds"
    kind = f"paired t-test, {len(a)} {unit}" if is_paired else f"Welch's t-test, {len(a)} and {len(b)} {unit}"
    return NO_SPREAD if math.isnan(p) else f"p = {p:.3g}, {kind}"
