"""Two classifiers, or two groups of them, on the same images: McNemar's test, and where they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cifar_research.comparison import statistics
from cifar_research.inference.trained import softmax
from cifar_research.runs.metrics import wilson_interval


def mcnemar(only_first: int, only_second: int) -> float | None:
    """Return the two-sided p of McNemar's exact test (McNemar 1947): the binomial test of the images that differ.

    only_first, only_second: images that only the one, or only the other, classifies correctly. Exact, and therefore
    without a continuity correction. None if there are none.
    """
    from scipy import stats  # takes a second to import

    num = only_first + only_second
    return float(stats.binomtest(only_first, num).pvalue) if num else None


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for being many (Holm 1979), in the order given; None stays, and counts among them."""
    order = sorted((i for i, value in enumerate(values) if value is not None), key=lambda i: values[i])
    adjusted, largest = [None] * len(values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - place) * values[i]))
        adjusted[i] = largest
    return adjusted


def vote(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the class, int [N], that most of R classifiers choose, and their mean probability of it, float [N].

    logits: float [R, N, K]. Equal votes go to the class of the higher mean probability; of one classifier, its own.
    """
    num_classes = logits.shape[2]
    votes = np.eye(num_classes)[logits.argmax(2)].sum(0)
    mean = softmax(logits.astype(np.float64)).mean(0)
    # The probabilities sum up to less than one vote.
    winners = logits[0].argmax(1) if len(logits) == 1 else (votes + mean / 2).argmax(1)
    return winners, mean[np.arange(len(winners)), winners]


def group(logits: np.ndarray, labels: np.ndarray, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the accuracy of each of a group's runs, their mean with its interval, and the accuracy of their vote.

    interval: 95 %, by Student's t over the runs, or Wilson's of the images for one run; None of equal runs.
    """
    accuracies = [float((one.argmax(1) == labels).mean()) for one in logits]
    mean = sum(accuracies) / len(accuracies)
    if len(accuracies) > 1:
        half = statistics.t_half_width(accuracies)
        interval = None if math.isnan(half) else [mean - half, mean + half]
    else:
        interval = list(wilson_interval(mean, len(labels)))
    voted = float((vote(logits)[0] == labels).mean())
    return {"accuracies": accuracies, "seeds": list(seeds), "mean": mean, "interval": interval, "vote": voted}


def compare(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    seeds: tuple[Sequence[int], Sequence[int]],
) -> dict[str, Any]:
    """Return two groups' accuracies, the four-fold table of their votes with its p, and the same by class.

    first, second: logits float [R, N, K] of each group's runs; labels: int [N]; seeds: of the runs of each.
    p_of_seeds: of the difference of the mean accuracies over runs, by the t-test of statistics.t_test, paired where both
    groups have the same seeds, one run each; None with a single run in either, or without any spread. That of the votes
    speaks of these images and these trained weights only.
    """
    right = [vote(one)[0] == labels for one in (first, second)]
    groups = [group(one, labels, own) for one, own in zip((first, second), seeds, strict=True)]
    rows = []
    for number, name in enumerate(classes):
        mine = labels == number
        a, b = (one[mine] for one in right)
        counts = int((a & ~b).sum()), int((~a & b).sum())
        rows.append({"class": name, "images": int(mine.sum()), "first": _share(a), "second": _share(b),
                     "only_first": counts[0], "only_second": counts[1], "p": mcnemar(*counts)})  # fmt: skip
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    only = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    p_of_seeds = None
    # Runs that share a seed within a group are told apart, and then nothing is paired.
    is_paired = sorted(set(seeds[0])) == sorted(seeds[0]) == sorted(seeds[1])
    if min(len(first), len(second)) > 1:
        by_run = [
            {seed if is_paired else (number, place): accuracy
             for place, (seed, accuracy) in enumerate(zip(own, one["accuracies"], strict=True))}
            for number, (own, one) in enumerate(zip(seeds, groups, strict=True))
        ]  # fmt: skip
        p_of_seeds = None if math.isnan(p := statistics.t_test(*by_run)) else p
    return {
        "first": groups[0],
        "second": groups[1],
        "table": {
            "both_right": int((right[0] & right[1]).sum()),
            "only_first": only[0],
            "only_second": only[1],
            "both_wrong": int((~right[0] & ~right[1]).sum()),
        },
        "test": "McNemar, exact",
        "p": mcnemar(*only),
        "p_of_seeds": p_of_seeds,
        "is_paired": is_paired,
        "by_class": rows,
    }


def differences(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Return the images that one group's vote gets right and the other's does not, the clearest first.

    first, second: logits float [R, N, K]. shares: of each group's runs that are right; the clearest difference is that
    of the mean probabilities of the two predictions' true class.
    """
    votes = [vote(one) for one in (first, second)]
    places = np.arange(len(labels))
    of_truth = [softmax(one.astype(np.float64)).mean(0)[places, labels] for one in (first, second)]
    shares = [(one.argmax(2) == labels).mean(0) for one in (first, second)]
    odd = np.flatnonzero((votes[0][0] == labels) != (votes[1][0] == labels))
    order = odd[np.argsort(-np.abs(of_truth[0] - of_truth[1])[odd], kind="stable")]
    return [
        {
            "index": int(i),
            "label": int(labels[i]),
            "first": int(votes[0][0][i]),
            "second": int(votes[1][0][i]),
            "first_probability": float(votes[0][1][i]),
            "second_probability": float(votes[1][1][i]),
            "first_share": float(shares[0][i]),
            "second_share": float(shares[1][i]),
        }
        for i in order
    ]


def _share(right: np.ndarray) -> float | None:
    return float(right.mean()) if len(right) else None
