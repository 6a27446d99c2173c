"""Runs side by side: which settings vary, which runs repeat each other, ranks and main effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from cifar_research.comparison import statistics
from cifar_research.comparison.runs import Run, varied
from cifar_research.display.tables import text_of
from cifar_research.runs.metrics import wilson_interval

NO_SPREAD = "no spread"
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

    @property
    def is_scored(self) -> bool:
        """Return whether a run has a validation or test accuracy."""
        return any(self.scores(f"{split}/accuracy") for split in ("val", "test"))

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
        num_scores, (low, high) = len(self.scores(path)), self.bounds(path)
        if not num_scores:
            return "–"
        if math.isnan(low):
            return NO_SPREAD
        return f"± {(high - low) / 2:.4f}" if num_scores > 1 else f"[{low:.4f}, {high:.4f}]"


class Effect(NamedTuple):
    """Runs with one value of a setting: mean validation accuracy and half its 95 % interval."""

    value: str
    mean: float
    half_width: float
    n: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a report says of its runs, each part computed once."""

    runs: Sequence[Run]

    @cached_property
    def titles(self) -> dict[str, str]:
        """The settings that differ: {key: title}; see runs.varied."""
        return varied(self.runs)

    @cached_property
    def distinct(self) -> list[Run]:
        """The runs without completed ones that a later run repeats with the same seed."""
        return list({(run.group, run.seed): run for run in self.runs}.values())

    @cached_property
    def completed(self) -> list[Run]:
        """The distinct runs that are completed and have a validation accuracy."""
        return [run for run in self.distinct if run.is_scored]

    @cached_property
    def scored_rows(self) -> list[Row]:
        """The rows with a result by mean validation accuracy, best first, without ranks."""
        return sorted(_rows(self.completed), key=lambda row: row.mean("val/accuracy") or 0.0, reverse=True)

    @cached_property
    def leaderboard(self) -> list[Row]:
        """The rows with a result, best first, then those without one.

        A row that ties with the best, see statistics.is_tie, has its rank.
        """
        rows = []
        for number, row in enumerate(self.scored_rows, 1):
            best, own = ({run.seed: run.val_accuracy for run in other.runs} for other in (self.scored_rows[0], row))
            num_best, num_own = (other.runs[0].score("data/sizes/val") for other in (self.scored_rows[0], row))
            is_tie = number > 1 and statistics.is_tie(best, own, num_best, num_own)
            rows.append(Row(row.runs, 1 if is_tie else number, is_tie))
        return rows + _rows([run for run in self.distinct if not run.is_scored])

    @cached_property
    def best_rows(self) -> dict[tuple[str, str], Row]:
        """The best row, by validation, of each technique and backbone."""
        best: dict[tuple[str, str], Row] = {}
        for row in self.scored_rows:
            best.setdefault((technique(row.runs[0]), row.runs[0].settings["backbone"]), row)
        names = dict.fromkeys([*_TECHNIQUES.values(), *(name for name, _ in best)])
        return {pair: row for name in names for pair, row in best.items() if pair[0] == name}

    @cached_property
    def effects(self) -> dict[str, list[Effect]]:
        """The effect of each value, by key of each varied setting.

        Mean and Student's interval are over all completed runs with the value, whatever their other settings.
        """
        effects_by_key = {}
        for key in self.titles:
            accuracies: dict[str, list[float]] = {}
            for run in self.completed:
                if key in run.settings:
                    accuracies.setdefault(text_of(run.settings[key]), []).append(run.val_accuracy)
            # If each run has another value, as in a random search, means are meaningless.
            if any(len(values) > 1 for values in accuracies.values()):
                effects_by_key[key] = [
                    Effect(value, sum(values) / len(values), statistics.t_half_width(values), len(values))
                    for value, values in accuracies.items()
                ]
        return effects_by_key


def _rows(runs: Sequence[Run]) -> list[Row]:
    groups: dict[tuple[str, str | None], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return list(map(Row, groups.values()))


def technique(run: Run) -> str:
    """Return the name of a run's way of training, or else the names of its phases."""
    phases = "+".join(run.config["training"]["phases"])
    if phases == "scratch" and run.settings.get("backbone.weights", "none") != "none":
        return "all weights"
    return _TECHNIQUES.get(phases, phases)
