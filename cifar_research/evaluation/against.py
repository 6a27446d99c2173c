"""Compare two classifiers, or two groups of them, on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from cifar_research.comparison import statistics
from cifar_research.evaluation.scores import records
from cifar_research.runs.metrics import wilson_interval


def mcnemar(only_first: int, only_second: int) -> float | None:
    """Return the two-sided p of McNemar's exact test (McNemar 1947); None of no images.

    only_first, only_second: the number of images that only this classifier classifies correctly.
    """
    from scipy import stats  # takes a second to import

    num = only_first + only_second
    return float(stats.binomtest(only_first, num).pvalue) if num else None


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for multiple tests (Holm 1979); None stays, and counts."""
    known = sorted((value, i) for i, value in enumerate(values) if value is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(values) - rank) * value))
        adjusted[i] = largest
    return adjusted


def vote(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the majority class, int [N], of R classifiers, and its mean probability [N].

    logits: float [R, N, K]. A tie goes to the class with the higher mean probability.
    """
    votes = np.eye(logits.shape[2])[logits.argmax(2)].sum(0)
    mean = _mean_probabilities(logits)
    # Halved, the mean probability is below one vote, so it only breaks ties.
    winners = (votes + mean / 2).argmax(1)
    return winners, mean[np.arange(len(winners)), winners]


def _mean_probabilities(logits: np.ndarray) -> np.ndarray:
    return softmax(logits.astype(np.float64), axis=2).mean(0)


def group(logits: np.ndarray, labels: np.ndarray, seeds: Sequence[int], overlap: float = 0.0) -> dict[str, Any]:
    """Return a group's accuracies, their mean, its interval, and the accuracy of the vote.

    interval: 95 %, by Student's t over runs, or Wilson's for one run; None if all runs are equal. overlap: for folds, see
    statistics.t_half_width.
    """
    accuracies = [float((run.argmax(1) == labels).mean()) for run in logits]
    mean, half = sum(accuracies) / len(accuracies), statistics.t_half_width(accuracies, overlap)
    interval = None if math.isnan(half) else [mean - half, mean + half]
    if len(accuracies) == 1:
        interval = list(wilson_interval(mean, len(labels)))
    correct = float((vote(logits)[0] == labels).mean())
    return {"accuracies": accuracies, "seeds": list(seeds), "mean": mean, "interval": interval, "vote": correct}


def compare(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    repeats: Sequence[Sequence[tuple[int, int | None]]],
    overlaps: Sequence[float] = (0.0, 0.0),
) -> dict[str, Any]:
    """Return two groups' accuracies, the table of their votes with p, and both by class.

    first, second: logits float [R, N, K] of each group's runs; labels: int [N]; repeats: seed and fold of the runs of
    each; overlaps: of their folds, see statistics.t_half_width.
    p: of the votes, for these images and trained weights only. p_of_seeds: of the mean accuracies over runs, paired if
    both groups have the same seeds and folds, once each; None with a single run in a group, or without spread.
    """
    groups = [
        group(logits, labels, [seed for seed, _ in own], overlap)
        for logits, own, overlap in zip((first, second), repeats, overlaps, strict=True)
    ]
    is_first, is_second = (vote(logits)[0] == labels for logits in (first, second))
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(classes):
        of_class = labels == number
        num, table = int(of_class.sum()), _fourfold(is_first[of_class], is_second[of_class])
        only = {key: table[key] for key in ("only_first", "only_second")}
        shares = {key.removeprefix("only_"): (table["both_right"] + count) / num if num else None
                  for key, count in only.items()}  # fmt: skip
        rows.append({"class": name, "images": num, **shares, **only, "p": mcnemar(**only)})
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    table = _fourfold(is_first, is_second)
    # Not paired if runs of a group share a seed and a fold.
    is_paired = len(set(repeats[0])) == len(repeats[0]) == len(repeats[1]) and set(repeats[0]) == set(repeats[1])
    by_seed: list[dict[Any, float]] = [
        {repeat if is_paired else (number, i): values["accuracies"][i] for i, repeat in enumerate(own)}
        for number, (own, values) in enumerate(zip(repeats, groups, strict=True))
    ]
    p_of_seeds = statistics.t_test(by_seed[0], by_seed[1], max(overlaps))
    return {
        "first": groups[0],
        "second": groups[1],
        "table": table,
        "test": "McNemar, exact",
        "p": mcnemar(table["only_first"], table["only_second"]),
        "p_of_seeds": None if math.isnan(p_of_seeds) else p_of_seeds,
        "is_paired": is_paired,
        "is_over_folds": max(overlaps) > 0,
        "by_class": rows,
    }


def _fourfold(is_first: np.ndarray, is_second: np.ndarray) -> dict[str, int]:
    """Return how many images both, one or none classify correctly, from bool [N] each."""
    return {
        "both_right": int((is_first & is_second).sum()),
        "only_first": int((is_first & ~is_second).sum()),
        "only_second": int((~is_first & is_second).sum()),
        "both_wrong": int((~is_first & ~is_second).sum()),
    }


def differences(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Return the images that only one group's vote classifies correctly, the clearest first.

    first, second: logits float [R, N, K]. The clearest has the largest difference in the true class's mean probability.
    <group>_share: of its runs that are correct.
    """
    groups = {"first": first, "second": second}
    columns: dict[str, np.ndarray] = {"index": np.arange(len(labels)), "label": labels}
    for name, logits in groups.items():
        columns[name], columns[f"{name}_probability"] = vote(logits)
        columns[f"{name}_share"] = (logits.argmax(2) == labels).mean(0)
    of_truth = [_mean_probabilities(logits)[columns["index"], labels] for logits in groups.values()]
    rows = np.flatnonzero((columns["first"] == labels) != (columns["second"] == labels))
    order = rows[np.argsort(-np.abs(of_truth[0] - of_truth[1])[rows], kind="stable")]
    return records({name: column[order] for name, column in columns.items()})
