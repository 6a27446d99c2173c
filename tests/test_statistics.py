"""Intervals and tests, against scipy.stats and by hand."""

import math

import pytest
from scipy import stats

from cifar_research.comparison import statistics

FIRST, SECOND = {0: 0.71, 1: 0.74, 2: 0.72, 3: 0.70}, {0: 0.70, 1: 0.72, 2: 0.715, 3: 0.68}


def test_interval_of_a_mean():
    low, high = stats.t.interval(0.95, 3, sum(FIRST.values()) / 4, stats.sem(list(FIRST.values())))
    assert statistics.t_half_width(list(FIRST.values())) == pytest.approx((high - low) / 2)
    assert math.isnan(statistics.t_half_width([0.5]))


def test_paired_where_the_seeds_are_the_same_and_welch_where_not():
    a, b = list(FIRST.values()), list(SECOND.values())
    assert statistics.t_test(FIRST, SECOND) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    other = {5: 0.70, 6: 0.72, 7: 0.715}
    welch = stats.ttest_ind(a, list(other.values()), equal_var=False).pvalue
    assert statistics.t_test(FIRST, other) == pytest.approx(welch)
    assert math.isnan(statistics.t_test(FIRST, {0: 0.5}))


def test_without_any_spread():
    assert statistics.t_test({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}) == 1
    assert statistics.t_test({0: 0.5, 1: 0.5}, {0: 0.75, 1: 0.75}) == 0
    assert statistics.t_test({0: 0.5, 1: 0.5}, {2: 0.75, 3: 0.75}) == 0


@pytest.mark.parametrize(("second", "expected"), [(0.79, True), (0.785, True), (0.78, False)])
def test_binomial_error_of_5000_images(second, expected):
    # 1.96 x sqrt(2 x 0.8 x 0.2 / 5000) = 0.0157; a little more below 0.8
    assert statistics.is_within_binomial(0.8, second, 5000, 5000) is expected


def test_a_tie_needs_only_one_kind_of_noise():
    far = {0: 0.60, 1: 0.62, 2: 0.61}
    assert not statistics.is_tie({0: 0.7, 1: 0.72, 2: 0.71}, far, 5000, 5000)
    assert statistics.is_tie({0: 0.7, 1: 0.72, 2: 0.71}, far, 50, 50)
    assert statistics.is_tie({0: 0.9, 1: 0.5, 2: 0.6}, far, 10**6, 10**6)
