"""What a few numbers allow to say: intervals over seeds, and whether two settings differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scipy.special import stdtr, stdtrit  # scipy.stats takes a second to import

_LEVEL = 0.05


def t_half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean by Student's t; nan for fewer than two, or equal, values."""
    n = len(values)
    if n < 2 or _variance(values) == 0:
        return math.nan
    return float(stdtrit(n - 1, 1 - _LEVEL / 2)) * math.sqrt(_variance(values) / n)


def t_test(first: Mapping[int, float], second: Mapping[int, float]) -> float:
    """Return the two-sided p-value for two settings' values by seed; nan if either has fewer than two, or no spread.

    Paired if the seeds are the same, since a seed is the same split of luck for both; else Welch's.
    """
    if min(len(first), len(second)) < 2:
        return math.nan
    if first.keys() == second.keys():
        differences = [first[seed] - second[seed] for seed in first]
        mean, error, freedom = _mean(differences), _variance(differences) / len(differences), len(differences) - 1
    else:
        a, b = (_variance(list(one.values())) / len(one) for one in (first, second))
        mean, error = _mean(list(first.values())) - _mean(list(second.values())), a + b
        freedom = error**2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1)) if error else 1.0
    if error == 0:
        return math.nan
    return float(2 * stdtr(freedom, -abs(mean) / math.sqrt(error)))


def is_within_binomial(first: float, second: float, num_first: int, num_second: int) -> bool:
    """Say whether two accuracies on so many images each may be chance of the images, at 5 %; True of no images.

    By the normal test, or by Fisher's exact one where fewer than five right or wrong images are to be expected.
    """
    if min(num_first, num_second) == 0:
        return True
    pooled = (first * num_first + second * num_second) / (num_first + num_second)
    if min(num_first, num_second) * min(pooled, 1 - pooled) < 5:
        return _fisher(round(first * num_first), round(second * num_second), num_first, num_second) > _LEVEL
    error = math.sqrt(pooled * (1 - pooled) * (1 / num_first + 1 / num_second))
    return abs(first - second) <= float(-stdtrit(1e9, _LEVEL / 2)) * error


def _fisher(right: int, other_right: int, num: int, other_num: int) -> float:
    """Return the two-sided p of Fisher's exact test for so many right images of two sets."""
    total = right + other_right
    low, high = max(0, total - other_num), min(num, total)
    logs = [_log_binomial(num, k) + _log_binomial(other_num, total - k) for k in range(low, high + 1)]
    whole = _log_binomial(num + other_num, total)
    shares = [math.exp(log - whole) for log in logs]
    return sum(share for share in shares if share <= shares[right - low] * (1 + 1e-7))


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def is_tie(
    first: Mapping[int, float], second: Mapping[int, float], num_first: int, num_second: int
) -> bool:  # fmt: skip
    """Say whether two settings' accuracies by seed are within the noise: the seeds' or that of the scored images.

    With one seed each, only the images' noise is known, so the settings may still differ by luck.
    """
    p = t_test(first, second)
    if not math.isnan(p) and p > _LEVEL:
        return True
    return is_within_binomial(_mean(list(first.values())), _mean(list(second.values())), num_first, num_second)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    found = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return found if found > 1e-24 else 0.0  # of accuracies, what is less is rounding
