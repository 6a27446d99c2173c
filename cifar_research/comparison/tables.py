"""Rank runs, and tabulate them: leaderboard, main effects, the study's table."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

from cifar_research import config
from cifar_research.comparison import statistics
from cifar_research.comparison.runs import Run, varied
from cifar_research.display.tables import Table, text_of
from cifar_research.runs.metrics import wilson_interval

_NO_SPREAD = "no spread"
# Techniques by their phases.
_TECHNIQUES = {
    "scratch": "from scratch",
    "head": "feature extraction",
    "backbone": "fine-tuning",
    "head+backbone": "combined",
}


@dataclass(frozen=True)
class Row:
    """Runs that differ by their seed only. rank: 1 for the best and its ties, None if unranked."""

    runs: list[Run]
    rank: int | None = None
    is_tie: bool = False

    def scores(self, path: str) -> list[float]:
        """Return the runs' values at a path such as `val/accuracy`, without unknown ones."""
        return [value for run in self.runs if (value := run.score(path)) is not None]

    def mean(self, path: str) -> float | None:
        """Return the mean over the runs, or None without values."""
        scores = self.scores(path)
        return sum(scores) / len(scores) if scores else None

    def bounds(self, path: str) -> tuple[float, float]:
        """Return the 95 % interval of an accuracy, by t over seeds or Wilson's for one run, or nan."""
        scores = self.scores(path)
        if len(scores) == 1:
            return wilson_interval(scores[0], self.runs[0].score(f"data/sizes/{path.partition('/')[0]}"))
        half_width = statistics.t_half_width(scores)
        mean = sum(scores) / max(len(scores), 1)
        return mean - half_width, mean + half_width

    def interval(self, path: str) -> str:
        """Return the 95 % interval as text: ± over seeds, or [low, high] for one run."""
        num_scores = len(self.scores(path))
        if not num_scores:
            return "–"
        low, high = self.bounds(path)
        if math.isnan(low):
            return _NO_SPREAD
        return f"± {(high - low) / 2:.4f}" if num_scores > 1 else f"[{low:.4f}, {high:.4f}]"


class Effect(NamedTuple):
    """Runs with one value of a setting: mean validation accuracy and half its 95 % interval."""

    value: str
    mean: float
    half_width: float
    n: int


class _Cell(NamedTuple):
    """A cell of the leaderboard. name: CSV column; heading: text column; "" leaves it out."""

    name: str
    heading: str
    value: Any
    form: str = ""


def leaderboard(runs: Sequence[Run]) -> list[Row]:
    """Return rows by mean validation accuracy, best first, then those without a result.

    A row that ties with the best, see statistics.is_tie, has its rank.
    """
    scored, rows = scored_rows(runs), []
    for number, row in enumerate(scored, 1):
        best, own = ({run.seed: run.val_accuracy for run in other.runs} for other in (scored[0], row))
        num_best, num_own = (other.runs[0].score("data/sizes/val") for other in (scored[0], row))
        is_tie = number > 1 and statistics.is_tie(best, own, num_best, num_own)
        rows.append(Row(row.runs, 1 if is_tie else number, is_tie))
    return rows + _rows([run for run in _distinct(runs) if not run.is_scored])


def scored_rows(runs: Sequence[Run]) -> list[Row]:
    """Return the rows with a result by mean validation accuracy, best first, without ranks."""
    return sorted(_rows(completed(runs)), key=lambda row: row.mean("val/accuracy") or 0.0, reverse=True)


def _rows(runs: Sequence[Run]) -> list[Row]:
    groups: dict[tuple[str, str | None], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return list(map(Row, groups.values()))


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """Return the runs without completed ones that a later run repeats with the same seed."""
    return list({(run.group, run.seed): run for run in runs}.values())


def completed(runs: Sequence[Run]) -> list[Run]:
    """Return completed runs with a validation accuracy, without repeated ones."""
    return [run for run in _distinct(runs) if run.is_scored]


def best_rows(runs: Sequence[Run]) -> dict[tuple[str, str], Row]:
    """Return the best row, by validation, of each technique and backbone."""
    best: dict[tuple[str, str], Row] = {}
    for row in scored_rows(runs):
        best.setdefault((technique(row.runs[0]), row.runs[0].settings["backbone"]), row)
    names = dict.fromkeys([*_TECHNIQUES.values(), *(name for name, _ in best)])
    return {pair: row for name in names for pair, row in best.items() if pair[0] == name}


def technique(run: Run) -> str:
    """Return the name of a run's way of training, or else the names of its phases."""
    phases = "+".join(run.config["training"]["phases"])
    if phases == "scratch" and run.settings.get("backbone.weights", "none") != "none":
        return "all weights"
    return _TECHNIQUES.get(phases, phases)


def leaderboard_table(runs: Sequence[Run]) -> Table:
    """Return the leaderboard as text: rank, varied settings, results."""
    rows = [[cell for cell in row if cell.heading] for row in _leaderboard_cells(runs)]
    return [[cell.heading for cell in rows[0]], *([text_of(cell.value, cell.form) for cell in row] for row in rows)]


def leaderboard_csv(runs: Sequence[Run]) -> list[list[Any]]:
    """Return the leaderboard for programs: one number a column, settings by their full keys."""
    rows = [[cell for cell in row if cell.name] for row in _leaderboard_cells(runs)]
    return [[cell.name for cell in rows[0]], *([cell.value for cell in row] for row in rows)]


def _leaderboard_cells(runs: Sequence[Run]) -> list[list[_Cell]]:
    """Return the leaderboard's rows, all with the same columns."""
    titles = varied(runs)
    has_images = len({run.fingerprint for run in runs if run.fingerprint}) > 1
    rows = []
    for row in leaderboard(runs):
        run, num = row.runs[0], len(row.runs)
        cells = [
            _Cell("rank", "", row.rank),
            _Cell("", "rank", f"{row.rank} =" if row.is_tie else row.rank),
            _Cell("is_tie", "", None if row.rank is None else row.is_tie),
            *(_Cell(key, title, run.settings.get(key)) for key, title in titles.items()),
            *([_Cell("images", "images", run.fingerprint, ".8")] if has_images else []),
            _Cell("n", "n", num),
        ]
        for split in ("val", "test"):
            path = f"{split}/accuracy"
            low, high = row.bounds(path)
            cells += [
                _Cell(f"{split}_accuracy", f"{split} accuracy", row.mean(path), ".4f"),
                _Cell(f"{split}_low", "", low),
                _Cell(f"{split}_high", "", high),
                _Cell("", f"{split} 95 %", row.interval(path)),
            ]
        cells += [
            _Cell("interval", "", "seeds" if num > 1 else "images"),
            _Cell("train_accuracy", "train accuracy", row.mean("train/accuracy"), ".4f"),
            _Cell("val_loss", "val loss", row.mean("val/loss"), ".4f"),
        ]
        for name in ("parameters", "trainable", "MFLOP"):
            is_shown = len({run.sizes[name] for run in runs} - {None}) > 1
            form = ".1f" if name == "MFLOP" else ""
            cells.append(_Cell(name.lower(), name if is_shown else "", run.sizes[name], form))
        rows.append([
            *cells,
            _Cell("epochs", "epochs", row.mean("epochs"), "g"),
            _Cell("seconds", "seconds", row.mean("seconds/total"), ".0f"),
            _Cell("", "state", run.state if run.reason is None else f"{run.state}: {run.reason}"),
            _Cell("state", "", run.state),
            _Cell("reason", "", run.reason),
        ])  # fmt: skip
    return rows


def effects(runs: Sequence[Run]) -> dict[str, list[Effect]]:
    """Return the effect of each value, by key of each varied setting.

    Mean and Student's interval are over all completed runs with the value, whatever their other settings.
    """
    effects_by_key = {}
    for key in varied(runs):
        accuracies: dict[str, list[float]] = {}
        for run in completed(runs):
            if key in run.settings:
                accuracies.setdefault(text_of(run.settings[key]), []).append(run.val_accuracy)
        # If each run has another value, as in a random search, means are meaningless.
        if any(len(values) > 1 for values in accuracies.values()):
            effects_by_key[key] = [
                Effect(value, sum(values) / len(values), statistics.t_half_width(values), len(values))
                for value, values in accuracies.items()
            ]
    return effects_by_key


def effects_table(runs: Sequence[Run]) -> Table:
    """Return the main effects as text, the best value of each key first."""
    table = [["what", "value", "n", "mean val accuracy", "95 %"]]
    titles = varied(runs)
    for key, rows in effects(runs).items():
        for value, mean, half_width, n in sorted(rows, key=lambda effect: -effect.mean):
            missing = "–" if n == 1 else _NO_SPREAD
            interval = missing if math.isnan(half_width) else f"± {half_width:.4f}"
            table.append([titles[key], value, str(n), f"{mean:.4f}", interval])
    return table


_STUDY_KEYS = {
    "loss": "loss",
    "learning_rate": "optimizer.learning_rate",
    "dropout": "model.dropout",
    "optimizer": "optimizer",
    "pooling": "backbone.pooling",
}  # by column of the study
_STUDY_SCORES = ("accuracy", "val_accuracy", "loss_value", "val_loss")


def _outside_grid(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that all jobs of the study's grid share."""
    keys = ("backbone", "model", "augmentation", "training", "data.name", "data.train_size", "data.classes")
    return {
        key: value
        for key, value in settings.items()
        if (key in keys or key.startswith(("backbone.", "model."))) and key not in _STUDY_KEYS.values()
    }


def study_table(runs: Sequence[Run]) -> Table | None:
    """Return the study's 24 rows beside ours; None if the runs are not of its grid on CIFAR-10.

    Ours are means over seeds. ACC and LOSS_VALUE are training scores in the best epoch by validation.
    """
    text = (resources.files("cifar_research.comparison") / "study_2021.csv").read_text(encoding="utf-8")
    study = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    groups: dict[tuple[str, ...], list[Run]] = {tuple(row[name] for name in _STUDY_KEYS): [] for row in study}
    distinct = [(run, run.identity.described()) for run in _distinct(runs)]
    for run, settings in distinct:
        values = tuple(text_of(settings.get(key)) for key in _STUDY_KEYS.values())
        if values not in groups:
            return None
        groups[values].append(run)
    expected = _outside_grid(config.parse(["experiment=wide"]).identity.described())
    if any(_outside_grid(settings) != expected for _, settings in distinct):
        return None
    table = [["LOSS", "LR", "DROPOUT", "OPT", "POOLING", "ACC", "VAL_ACC", "LOSS_VALUE", "VAL_LOSS", "test accuracy",
              "study ACC", "study VAL_ACC", "study LOSS_VALUE", "study VAL_LOSS"]]  # fmt: skip
    for (values, group), row in zip(groups.items(), study, strict=True):
        scores = ("train/accuracy", "val/accuracy", "train/loss", "val/loss", "test/accuracy")
        means = [text_of(Row(group).mean(path), ".4f") for path in scores]
        table.append([*values, *means, *(row[name] for name in _STUDY_SCORES)])
    return table
