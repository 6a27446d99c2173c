"""Intervals and tests, against scipy.stats and by hand."""

import math

import pytest
from scipy import stats

from cifar_research.comparison import statistics
from cifar_research.evaluation import against

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


def test_folds_have_the_correction_of_nadeau_and_bengio():
    values, overlap = list(FIRST.values()), 1 / 3  # four folds
    plain = stats.sem(values)
    wider = math.sqrt(plain**2 * (1 + 4 * overlap))
    low, high = stats.t.interval(0.95, 3, 0, wider)
    assert statistics.t_half_width(values, overlap) == pytest.approx((high - low) / 2)
    differences = [FIRST[fold] - SECOND[fold] for fold in FIRST]
    t = sum(differences) / 4 / (stats.sem(differences) * math.sqrt(1 + 4 * overlap))
    assert statistics.t_test(FIRST, SECOND, overlap) == pytest.approx(2 * stats.t.sf(t, 3))
    other = {5: 0.70, 6: 0.72, 7: 0.715}
    scaled = [(sum(each) / len(each), stats.tstd(each) * math.sqrt(1 + len(each) * overlap), len(each))
              for each in (values, list(other.values()))]  # fmt: skip
    welch = stats.ttest_ind_from_stats(*scaled[0], *scaled[1], equal_var=False).pvalue
    assert statistics.t_test(FIRST, other, overlap) == pytest.approx(welch) and welch > statistics.t_test(FIRST, other)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}),
        ({0: 0.5, 1: 0.5}, {0: 0.75, 1: 0.75}),
        ({0: 0.5, 1: 0.5}, {2: 0.75, 3: 0.75}),
        ({0: 0.7, 1: 0.8}, {0: 0.6, 1: 0.7}),  # differences that are equal but for rounding
    ],
)
def test_without_any_spread_there_is_no_p(first, second):
    assert math.isnan(statistics.t_test(first, second))


def test_equal_values_have_no_interval():
    assert math.isnan(statistics.t_half_width([0.7, 0.7, 0.7])) and math.isnan(statistics.t_half_width([0.1] * 10))


@pytest.mark.parametrize(("second", "expected"), [(0.79, True), (0.785, True), (0.78, False)])
def test_binomial_error_of_5000_images(second, expected):
    # 1.96 x sqrt(2 x 0.8 x 0.2 / 5000) = 0.0157; a little more below 0.8
    assert statistics.is_tie({0: 0.8}, {0: second}, [5000, 5000]) is expected


def test_p_values_are_those_of_the_formulas():
    error = (1 + 4) / 3  # of the variances 1 and 4 of three values each
    freedom = error**2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2)
    expected = 2 * stats.t.sf(2 / math.sqrt(error), freedom)
    assert statistics.t_test({0: 1, 1: 2, 2: 3}, {3: 2, 4: 4, 5: 6}) == pytest.approx(expected, abs=1e-9)
    assert against.mcnemar(2, 6) == pytest.approx(2 * (1 + 8 + 28) / 2**8, abs=1e-9)


def test_a_tie_needs_only_one_kind_of_noise():
    far = {0: 0.60, 1: 0.62, 2: 0.61}
    assert not statistics.is_tie({0: 0.7, 1: 0.72, 2: 0.71}, far, [5000, 5000])
    assert statistics.is_tie({0: 0.7, 1: 0.72, 2: 0.71}, far, [50, 50])
    assert statistics.is_tie({0: 0.9, 1: 0.5, 2: 0.6}, far, [10**6, 10**6])
