"""Confidence intervals over seeds, and tests of two settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cifar_research.runs.metrics import difference_interval

_LEVEL = 0.05


def t_half_width(values: Sequence[float], overlap: float = 0.0) -> float:
    """Return half the 95 % interval of a mean by Student's t; nan without spread.

    overlap: for folds, validation images over training images. The training sets overlap, so the values are not
    independent, and the variance of their mean is larger by it (Nadeau and Bengio 2003).
    """
    if len(values) < 2 or not (std := _std(values)):
        return math.nan
    from scipy.special import stdtrit  # scipy.stats takes a second

    return float(stdtrit(len(values) - 1, 1 - _LEVEL / 2) * std * math.sqrt(1 / len(values) + overlap))


def t_test(first: Mapping[Any, float], second: Mapping[Any, float], overlap: float = 0.0) -> float:
    """Return the two-sided p of a t-test of two settings' values by seed and fold.

    Paired if seeds and folds are the same, otherwise Welch's. nan below two values each, or without spread. overlap:
    as of `t_half_width`.
    """
    if min(len(first), len(second)) < 2:
        return math.nan
    from scipy import stats

    if first.keys() == second.keys():
        differences = [first[key] - second[key] for key in first]
        if not (std := _std(differences)):
            return math.nan
        error = std * math.sqrt(1 / len(differences) + overlap)
        return float(2 * stats.t.sf(abs(np.mean(differences)) / error, len(differences) - 1))
    # A standard deviation from which scipy computes the wider error of the mean.
    a, b = (
        (np.mean(values), _std(values) * math.sqrt(1 + overlap * len(values)), len(values))
        for values in (list(first.values()), list(second.values()))
    )
    return float(stats.ttest_ind_from_stats(*a, *b, equal_var=False).pvalue) if a[1] or b[1] else math.nan


def is_tie(
    first: Mapping[Any, float], second: Mapping[Any, float], num_images: Sequence[int], overlap: float = 0.0
) -> bool:
    """Return whether noise of seeds, folds or images may explain two settings' difference.

    num_images: of each setting, empty if the values are not shares of images. overlap: as of `t_half_width`.
    """
    if t_test(first, second, overlap) > _LEVEL:
        return True
    if not num_images:
        return False
    a, b = (float(np.mean(list(values.values()))) for values in (first, second))
    low, high = difference_interval(a, b, *num_images)
    return low <= 0 <= high


def _std(values: Sequence[float]) -> float:
    """Return the sample's standard deviation, 0 below the rounding errors of accuracies."""
    std = float(np.std(values, ddof=1))
    return std if std > 1e-12 else 0.0
