"""Tables of many runs: leaderboard, main effects, the study's table."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

from cifar_research import config
from cifar_research.comparison.ranking import Comparison, Row
from cifar_research.comparison.runs import Run
from cifar_research.display.tables import Table, text_of
from cifar_research.runs.metrics import display_name


class _Cell(NamedTuple):
    """A cell of the leaderboard. name: CSV column; heading: text column; "" leaves it out."""

    name: str
    heading: str
    value: Any
    form: str = ""


def leaderboard_table(comparison: Comparison) -> Table:
    """Return the leaderboard as text: rank, varied settings, results."""
    rows = [[cell for cell in row if cell.heading] for row in _leaderboard_cells(comparison)]
    return [[cell.heading for cell in rows[0]], *([text_of(cell.value, cell.form) for cell in row] for row in rows)]


def leaderboard_csv(comparison: Comparison) -> list[list[Any]]:
    """Return the leaderboard for programs: one number a column, settings by their full keys."""
    rows = [[cell for cell in row if cell.name] for row in _leaderboard_cells(comparison)]
    return [[cell.name for cell in rows[0]], *([cell.value for cell in row] for row in rows)]


@functools.lru_cache(maxsize=1)
def _leaderboard_cells(comparison: Comparison) -> list[list[_Cell]]:
    """Return the leaderboard's rows, all with the same columns."""
    titles, runs = comparison.titles, comparison.runs
    has_images = len({run.fingerprint for run in runs if run.fingerprint}) > 1
    sizes = {name: {run.sizes[name] for run in runs} for name in ("parameters", "trainable", "MFLOP")}
    rows = []
    for row in comparison.leaderboard:
        run, num = row.runs[0], len(row.runs)
        cells = [
            _Cell("rank", "", row.rank),
            _Cell("", "rank", f"{row.rank} =" if row.is_tie else row.rank),
            _Cell("is_tie", "", None if row.rank is None else row.is_tie),
            *(_Cell(key, title, run.settings.get(key)) for key, title in titles.items()),
            *([_Cell("images", "images", run.fingerprint, ".8")] if has_images else []),
            _Cell("n", "n", num),
        ]
        if comparison.metric != "accuracy":
            cells += [*_scores(row, "val", comparison.metric), *_scores(row, "test", comparison.metric)]
        cells += [*_scores(row, "val", "accuracy"), *_scores(row, "test", "accuracy")]
        cells += [
            _Cell("interval", "", ("folds" if row.overlap else "seeds") if num > 1 else "images"),
            _Cell("train_accuracy", "train accuracy", row.mean("train/accuracy"), ".4f"),
            *([] if comparison.metric == "loss" else [_Cell("val_loss", "val loss", row.mean("val/loss"), ".4f")]),
        ]
        for name, values in sizes.items():
            form = ".1f" if name == "MFLOP" else ""
            cells.append(_Cell(name.lower(), name if len(values - {None}) > 1 else "", run.sizes[name], form))
        rows.append([
            *cells,
            _Cell("epochs", "epochs trained" if "epochs" in titles.values() else "epochs", row.mean("epochs"), "g"),
            _Cell("seconds", "seconds", row.mean("seconds/total"), ".0f"),
            _Cell("", "state", run.state if run.reason is None else f"{run.state}: {run.reason}"),
            _Cell("state", "", run.state),
            _Cell("reason", "", run.reason),
        ])  # fmt: skip
    return rows


def _scores(row: Row, split: str, metric: str) -> list[_Cell]:
    path, name = f"{split}/{metric}", f"{split}_" if metric == "accuracy" else f"{split}_{metric}_"
    low, high = row.bounds(path)
    return [
        _Cell(f"{split}_{metric}", f"{split} {display_name(metric)}", row.mean(path), ".4f"),
        _Cell(f"{name}low", "", low),
        _Cell(f"{name}high", "", high),
        _Cell("", f"{split} 95 %", row.interval(path)),
    ]


def effects_table(comparison: Comparison, most: int | None = None) -> Table:
    """Return the main effects as text, the best value of each key first; most: of the values of a key."""
    path = f"val/{comparison.metric}"
    table = [["what", "value", "n", f"mean val {display_name(comparison.metric)}", "95 %"]]
    for key, rows in comparison.effects.items():
        best_first = sorted(rows.items(), key=lambda item: comparison.worth(item[1]), reverse=True)
        for value, row in best_first[:most]:
            num, mean = len(row.runs), text_of(row.mean(path), ".4f")
            table.append([comparison.titles[key], value, str(num), mean, "–" if num == 1 else row.interval(path)])
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


def study_rows() -> list[dict[str, str]]:
    """Return the 24 rows of the study's grid, as printed, in its order."""
    text = (resources.files("cifar_research.comparison") / "study_2021.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def study_table(comparison: Comparison) -> Table | None:
    """Return the study's 24 rows beside ours; None if the runs are not of its grid on CIFAR-10.

    Ours are means over seeds. ACC and LOSS_VALUE are training scores in the best epoch by validation.
    """
    study = study_rows()
    groups: dict[tuple[str, ...], list[Run]] = {tuple(row[name] for name in _STUDY_KEYS): [] for row in study}
    expected = None
    for run in comparison.distinct:
        settings = run.identity.described()
        values = tuple(text_of(settings.get(key)) for key in _STUDY_KEYS.values())
        if values not in groups:
            return None
        expected = expected or _outside_grid(config.parse(["experiment=wide"]).identity.described())
        if _outside_grid(settings) != expected:
            return None
        groups[values].append(run)
    table = [["LOSS", "LR", "DROPOUT", "OPT", "POOLING", "ACC", "VAL_ACC", "LOSS_VALUE", "VAL_LOSS", "test accuracy",
              "study ACC", "study VAL_ACC", "study LOSS_VALUE", "study VAL_LOSS"]]  # fmt: skip
    for (values, group), row in zip(groups.items(), study, strict=True):
        scores = ("train/accuracy", "val/accuracy", "train/loss", "val/loss", "test/accuracy")
        means = [text_of(Row(group).mean(path), ".4f") for path in scores]
        table.append([*values, *means, *(row[name] for name in _STUDY_SCORES)])
    return table
