"""Runs side by side: which settings vary, which runs repeat each other, ranks and main effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cifar_research.comparison import statistics
from cifar_research.comparison.runs import Run, varied
from cifar_research.display.tables import text_of
from cifar_research.runs import metrics

NO_SPREAD = "no spread"
OVERLAP = (
    "Over folds, ± and the t-test have the correction of Nadeau and Bengio (2003): the folds' training sets overlap, so the "
    "variance of the mean is s² (1/n + validation images / training images)."
)
# Techniques by their phases.
_TECHNIQUES = {
    "scratch": "from scratch",
    "head": "feature extraction",
    "backbone": "fine-tuning",
    "head+backbone": "combined",
}


@dataclass(frozen=True)
class Row:
    """Runs that differ by seed or fold only. rank: 1 for the best and its ties, None if unranked."""

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

    @property
    def overlap(self) -> float:
        """Return the correction for folds, see statistics.t_half_width; 0 if the runs are of one fold, or still wait."""
        if len({run.repeat[1] for run in self.runs}) == 1 or any(run.report is None for run in self.runs):
            return 0.0
        num_val, num_train = (sum(run.score(f"data/sizes/{split}") for run in self.runs) for split in ("val", "train"))
        return float(num_val / num_train)

    def half_width(self, path: str) -> float:
        """Return half the 95 % interval of the mean by t over seeds and folds, or nan."""
        scores = self.scores(path)
        return statistics.t_half_width(scores, self.overlap if scores else 0.0)

    def bounds(self, path: str) -> tuple[float, float]:
        """Return the 95 % interval of a metric, by t over seeds and folds or Wilson's for one run, or nan."""
        scores = self.scores(path)
        if len(scores) == 1 and path.rpartition("/")[2] in metrics.SHARES:
            return metrics.wilson_interval(scores[0], self.runs[0].score(f"data/sizes/{path.partition('/')[0]}"))
        mean, half_width = self.mean(path) or 0.0, self.half_width(path)
        return mean - half_width, mean + half_width

    def interval(self, path: str) -> str:
        """Return the 95 % interval as text: ± over seeds and folds, or [low, high] for one run."""
        num_scores, (low, high) = len(self.scores(path)), self.bounds(path)
        if math.isnan(low):
            return NO_SPREAD if num_scores > 1 else "–"
        return f"± {(high - low) / 2:.4f}" if num_scores > 1 else f"[{low:.4f}, {high:.4f}]"


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
        """The runs without completed ones that a later run repeats with the same seed and fold."""
        return list({(run.group, run.repeat): run for run in self.runs}.values())

    @cached_property
    def completed(self) -> list[Run]:
        """The distinct runs that are completed and have a validation accuracy."""
        return [run for run in self.distinct if run.is_scored]

    @cached_property
    def metric(self) -> str:
        """The metric that ranks: the one that all runs monitored, or else `accuracy`."""
        return monitored(self.runs)

    @cached_property
    def scored_rows(self) -> list[Row]:
        """The rows with a result by the mean of the metric, best first, without ranks."""
        return sorted(_rows(self.completed), key=self.worth, reverse=True)

    def worth(self, row: Row) -> float:
        """Return a row's mean of the metric as a number whose largest value is the best."""
        return metrics.worth({self.metric: row.mean(f"val/{self.metric}")}, self.metric) or 0.0

    @cached_property
    def leaderboard(self) -> list[Row]:
        """The rows with a result, best first, then those without one.

        A row that ties with the best, see statistics.is_tie, has its rank.
        """
        rows = []
        for number, row in enumerate(self.scored_rows, 1):
            best, own = (
                {run.repeat: run.val(self.metric) for run in other.runs} for other in (self.scored_rows[0], row)
            )
            sizes = [other.runs[0].score("data/sizes/val") for other in (self.scored_rows[0], row)]
            if self.metric not in metrics.SHARES:
                sizes = []
            overlap = max(self.scored_rows[0].overlap, row.overlap)
            is_tie = number > 1 and statistics.is_tie(best, own, sizes, overlap)
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
    def effects(self) -> dict[str, dict[str, Row]]:
        """All completed runs with a value, whatever their other settings, by key of each varied setting and by value."""
        effects_by_key = {}
        for key in self.titles:
            runs_by_value: dict[str, list[Run]] = {}
            for run in self.completed:
                if key in run.settings:
                    runs_by_value.setdefault(text_of(run.settings[key]), []).append(run)
            # If each run has another value, as in a random search, means are meaningless.
            if any(len(runs) > 1 for runs in runs_by_value.values()):
                effects_by_key[key] = {value: Row(runs) for value, runs in runs_by_value.items()}
        return effects_by_key


def has_several_losses(runs: Sequence[Run]) -> bool:
    """Return whether the losses that score runs may be different functions, whose values cannot be compared."""
    crossentropies = ("categorical_crossentropy", "logit_adjusted", "balanced_softmax")
    losses = set()
    for run in runs:
        # Class weights and shifts are of training alone.
        loss = {key: value for key, value in run.settings.items() if key.startswith("loss") and value is not None}
        name, smoothing = loss.pop("loss"), float(loss.pop("loss.label_smoothing", 0))
        kind = "crossentropy" if name in crossentropies else name
        more = [item for item in loss.items() if item[0] not in ("loss.class_weights", "loss.tau")]
        losses.add(str((kind, smoothing, sorted(more))))
    return len(losses) > 1


def monitored(runs: Sequence[Run]) -> str:
    """Return the metric that all runs monitored, or else `accuracy`."""
    names = {run.config["training"]["monitor"] for run in runs}
    return str(names.pop()) if len(names) == 1 else "accuracy"


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
