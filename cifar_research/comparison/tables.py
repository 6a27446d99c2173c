"""The leaderboard, the main effects, and the study's own table, as rows of text."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from omegaconf import OmegaConf

from cifar_research import config
from cifar_research.comparison import statistics
from cifar_research.comparison.runs import Run, varied
from cifar_research.display.tables import Table, number
from cifar_research.runs.metrics import wilson_interval

_ACCURACIES = ("val/accuracy", "test/accuracy")
_SIZES = ("parameters", "trainable", "MFLOP")
# What a training of these phases is called.
_TECHNIQUES = {
    "scratch": "from scratch",
    "head": "feature extraction",
    "backbone": "fine-tuning",
    "head+backbone": "combined",
}
_ALL_WEIGHTS = "all weights"  # trained from the start, but not from scratch
NO_SPREAD = "no spread"


@dataclass(frozen=True)
class Row:
    """Runs that differ by their seed alone. rank: 1 for the best and all that tie with it; None without a result."""

    runs: list[Run]
    rank: int | None
    is_tie: bool

    def _values(self, tag: str) -> list[float]:
        return [value for run in self.runs if (value := run.score(tag)) is not None]

    def mean(self, tag: str) -> float | None:
        values = self._values(tag)
        return sum(values) / len(values) if values else None

    def bounds(self, tag: str) -> tuple[float, float]:
        """Return the 95 % interval of a score: by Student's t over seeds, or that of one run's images.

        nan if there is no score, or if all seeds have the same.
        """
        values = self._values(tag)
        if not values:
            return math.nan, math.nan
        if len(values) > 1:
            half = statistics.t_half_width(values)
            return self.mean(tag) - half, self.mean(tag) + half
        return wilson_interval(values[0], self.runs[0].report["data"]["sizes"][tag.partition("/")[0]])

    def interval(self, tag: str) -> str:
        """Return the 95 % interval as text: ± over seeds, or that of one run's images, in brackets."""
        values = self._values(tag)
        if not values:
            return "–"
        low, high = self.bounds(tag)
        if math.isnan(low):
            return NO_SPREAD
        return f"± {(high - low) / 2:.4f}" if len(values) > 1 else f"[{low:.4f}, {high:.4f}]"

    def _by_seed(self) -> dict[int, float]:
        return {run.seed: run.val_accuracy for run in self.runs}


def leaderboard(runs: Sequence[Run]) -> list[Row]:
    """Return the rows by mean validation accuracy, best first; then those without a result, in their order.

    A row is below the best only if chance does not explain the difference, see statistics.is_tie.
    """
    groups: dict[Any, list[Run]] = {}
    scored = completed(runs)
    for run in scored:
        groups.setdefault(_alike(run), []).append(run)
    ranked = sorted((Row(group, None, False) for group in groups.values()), key=lambda row: -row.mean("val/accuracy"))
    others: dict[Any, list[Run]] = {}
    for place, run in enumerate(_distinct(runs)):
        if run.val_accuracy is None or run.state != "completed":
            others.setdefault(_alike(run) if run.state == "completed" else place, []).append(run)
    rows = []
    for place, row in enumerate(ranked, 1):
        best = ranked[0]
        num = (best.runs[0].num_val, row.runs[0].num_val)
        is_tie = statistics.is_tie(best._by_seed(), row._by_seed(), *num)
        rows.append(Row(row.runs, 1 if is_tie else place, is_tie and place > 1))
    return rows + [Row(group, None, False) for group in others.values()]


def _alike(run: Run) -> tuple[str, str | None]:
    """Return what runs that differ by their seed alone have in common: what they compute, and the images themselves."""
    images = _images(run)
    # The same images are the same wherever they lie.
    left_out = ("seed", *(["data.dir"] if images else []))
    said = {key: value for key, value in config.computed(run.config).items() if key not in left_out}
    return repr(sorted(said.items())), images


def _images(run: Run) -> str | None:
    """Return the fingerprint of a run's images, None if no report tells."""
    return (run.report or {}).get("data", {}).get("fingerprint")


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """Return the runs without those completed ones that a later one repeats, seed and all."""
    return list(
        {(_alike(run), run.seed) if run.state == "completed" else place: run for place, run in enumerate(runs)}.values()
    )


def best_rows(runs: Sequence[Run]) -> dict[tuple[str, str], Row]:
    """Return the best row, by validation, of each technique and backbone, since a mean would be of what was tried.

    By technique as `techniques` has them, then by backbone as the runs have them.
    """
    best: dict[tuple[str, str], Row] = {}
    for row in leaderboard(runs):
        if row.rank is not None:
            best.setdefault((technique(row.runs[0]), row.runs[0].settings["backbone"]), row)
    backbones = dict.fromkeys(run.settings["backbone"] for run in runs)
    pairs = [(name, backbone) for name in techniques(runs) for backbone in backbones]
    return {pair: best[pair] for pair in pairs if pair in best}


def technique(run: Run) -> str:
    """Return what a run's way of training is called, its phases' names if it has no other name."""
    phases = "+".join(run.config["training"].get("phases", {"scratch": None}))
    if phases == "scratch" and run.settings.get("backbone.weights", "none") != "none":
        return _ALL_WEIGHTS
    return _TECHNIQUES.get(phases, phases)


def techniques(runs: Sequence[Run]) -> list[str]:
    """Return the techniques of the completed runs, those with names of their own first."""
    found = [technique(run) for run in completed(runs)]
    return [name for name in dict.fromkeys([*_TECHNIQUES.values(), *found]) if name in found]


def differs(runs: Sequence[Run], key: str) -> bool:
    """Say whether a setting has more than one value among the completed runs."""
    return len({run.settings[key] for run in completed(runs)}) > 1


def completed(runs: Sequence[Run]) -> list[Run]:
    """Return the completed runs that have a validation accuracy; of those that repeat one, seed and all, the last."""
    return [run for run in _distinct(runs) if run.state == "completed" and run.val_accuracy is not None]


def leaderboard_table(runs: Sequence[Run]) -> Table:
    """Return the leaderboard as text: rank, what varies, what came out."""
    titles = varied(runs)
    sizes = [name for name in _SIZES if len({run.sizes[name] for run in runs if name in run.sizes}) > 1]
    shows_images = _shows_images(runs, titles)
    table = [["rank", *titles.values(), *(["images"] if shows_images else []), "n", "val accuracy", "val 95 %",
              "test accuracy", "test 95 %", "train accuracy", "val loss", *sizes, "epochs", "seconds", "state"]]  # fmt: skip
    for row in leaderboard(runs):
        run = row.runs[0]
        table.append([
            "–" if row.rank is None else f"{row.rank}{' =' if row.is_tie else ''}",
            *(text_of(run.settings.get(key)) for key in titles),
            *([str(_images(run))[:8]] if shows_images else []),
            str(len(row.runs)),
            *(cell for tag in _ACCURACIES for cell in (number(row.mean(tag)), row.interval(tag))),
            *(number(row.mean(tag)) for tag in ("train/accuracy", "val/loss")),
            *(number(run.sizes.get(name), "") for name in sizes),
            number(row.mean("epochs"), "g"),
            number(row.mean("seconds/total"), ".0f"),
            run.state if run.reason is None else f"{run.state}: {run.reason}",
        ])  # fmt: skip
    return table


def leaderboard_csv(runs: Sequence[Run]) -> Table:
    """Return the leaderboard for machines: a number a column, settings by their full keys, "" for what there is not.

    interval: what the 95 % intervals are over, `seeds` or the `images` of one run.
    """
    keys = list(varied(runs))
    shows_images = _shows_images(runs, keys)
    bounds = [f"{split}_{name}" for split in ("val", "test") for name in ("accuracy", "low", "high")]
    table = [["rank", "is_tie", *keys, *(["images"] if shows_images else []), "n", *bounds, "interval", "train_accuracy",
              "val_loss", *(name.lower() for name in _SIZES), "epochs", "seconds", "state", "reason"]]  # fmt: skip
    for row in leaderboard(runs):
        run = row.runs[0]
        table.append([_cell(value) for value in (
            row.rank, None if row.rank is None else row.is_tie, *(run.settings.get(key) for key in keys),
            *([_images(run)] if shows_images else []), len(row.runs),
            *(cell for tag in _ACCURACIES for cell in (row.mean(tag), *row.bounds(tag))),
            "seeds" if len(row.runs) > 1 else "images", row.mean("train/accuracy"), row.mean("val/loss"),
            *(run.sizes.get(name) for name in _SIZES), row.mean("epochs"), row.mean("seconds/total"),
            run.state, run.reason,
        )])  # fmt: skip
    return table


def _shows_images(runs: Sequence[Run], keys: Iterable[str]) -> bool:
    """Say whether copies of one data set that differ in their images are told apart by none of these settings."""
    shown: dict[tuple[str, ...], set[str | None]] = {}
    for run in runs:
        if _images(run):
            shown.setdefault(tuple(text_of(run.settings.get(key)) for key in keys), set()).add(_images(run))
    return any(len(images) > 1 for images in shown.values())


def effects(runs: Sequence[Run]) -> dict[str, list[tuple[str, float, float, int]]]:
    """Return, by title of what varies, (value, mean validation accuracy, half of its 95 % interval, n).

    The interval is Student's t over all completed runs that have the value, whatever else they differ in.
    """
    found: dict[str, list[tuple[str, float, float, int]]] = {}
    for key, title in varied(runs).items():
        values: dict[str, list[float]] = {}
        for run in completed(runs):
            if key in run.settings:
                values.setdefault(text_of(run.settings[key]), []).append(run.val_accuracy)
        # Of a key with a value of its own for each run, as a search draws them, means say nothing.
        if values and max(map(len, values.values())) > 1:
            found[title] = [
                (value, sum(of) / len(of), statistics.t_half_width(of), len(of)) for value, of in values.items()
            ]
    return found


def effects_table(runs: Sequence[Run]) -> Table:
    """Return the main effects as text, the best value of each key first."""
    table = [["what", "value", "n", "mean val accuracy", "95 %"]]
    for title, rows in effects(runs).items():
        for value, mean, half, n in sorted(rows, key=lambda row: -row[1]):
            lacks = "–" if n == 1 else NO_SPREAD
            table.append([title, value, str(n), f"{mean:.4f}", lacks if math.isnan(half) else f"± {half:.4f}"])
    return table


def strongest_two(runs: Sequence[Run]) -> list[tuple[str, str]] | None:
    """Return (key, title) of the two varied keys whose values' means lie furthest apart; None if fewer vary."""
    spread = {title: max(row[1] for row in rows) - min(row[1] for row in rows) for title, rows in effects(runs).items()}
    found = [(key, title) for key, title in varied(runs).items() if title in spread]
    return sorted(found, key=lambda pair: -spread[pair[1]])[:2] if len(found) > 1 else None


_STUDY_KEYS = {
    "pooling": "backbone.pooling",
    "dropout": "model.dropout",
    "learning_rate": "optimizer.learning_rate",
    "loss": "loss",
    "optimizer": "optimizer",
}


def _of_study(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what all cells of the study's grid have in common: the network, the images, and nothing done to them."""
    varied = ("backbone.pooling", "model.dropout")
    common = ("backbone", "model", "augmentation", "training", "data.train_size", "data.classes")
    return {
        key: value
        for key, value in settings.items()
        if key in common or (key.startswith(("backbone.", "model.")) and key not in varied)
    }


def study_table(runs: Sequence[Run]) -> Table | None:
    """Return the study's 24 rows in its order, ours beside its own; None if these runs are not of its grid on CIFAR-10.

    Ours is the mean over seeds; ACC and LOSS_VALUE are of training, in the epoch that validated best.
    """
    text = (resources.files("cifar_research.comparison") / "study_2021.csv").read_text(encoding="utf-8")
    study = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    wanted = [tuple(text_of(_value(row[key])) for key in _STUDY_KEYS) for row in study]
    ours: dict[tuple[str, ...], list[Run]] = {key: [] for key in wanted}
    alike = None
    for run in _distinct(runs):
        own = config.settings(run.config)
        place = tuple(text_of(own.get(key)) for key in _STUDY_KEYS.values())
        if place not in ours or run.config["data"]["name"] != "cifar10":
            return None
        alike = alike or _of_study(config.settings(OmegaConf.to_container(config.compose(["experiment=wide"]))))
        if any(own.get(key, value) != value for key, value in alike.items()):
            return None
        ours[place].append(run)
    table = [["LOSS", "LR", "DROPOUT", "OPT", "POOLING", "ACC", "VAL_ACC", "LOSS_VALUE", "VAL_LOSS", "test accuracy",
              "study ACC", "study VAL_ACC", "study LOSS_VALUE", "study VAL_LOSS"]]  # fmt: skip
    for place, row in zip(wanted, study, strict=True):
        found = Row(ours[place], None, False)
        pooling, dropout, rate, loss, optimizer = place
        tags = ("train/accuracy", "val/accuracy", "train/loss", "val/loss", "test/accuracy")
        names = ("accuracy", "val_accuracy", "loss_value", "val_loss")
        table.append([loss, rate, dropout, optimizer, pooling, *(number(found.mean(tag)) for tag in tags),
                      *(row[name] for name in names)])  # fmt: skip
    return table


def _cell(value: Any) -> str:
    """Return a value as machines read it: "" for none, at most ten digits, true and false, lists as JSON."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    return value if isinstance(value, str) else json.dumps(value)


def _value(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def text_of(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)
