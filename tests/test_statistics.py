"""Verdicts on differences: against scipy, against definitions, and over simulated comparisons."""

import math
import tomllib
from importlib.resources import files

import numpy as np
import pytest
from scipy import stats

from newllm.statistics.intervals import (
    compare,
    holm,
    verdicts,
)

A, B = [1.0, 1.2, 0.9, 1.1], [1.5, 1.4, 1.7]


def test_welch_equals_that_of_scipy() -> None:
    found, expected = compare(A, B, 0.05), stats.ttest_ind(A, B, equal_var=False)
    assert found.p_difference == pytest.approx(expected.pvalue, rel=1e-12)
    low, high = expected.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), rel=1e-12)


def test_pairs_equal_those_of_scipy() -> None:
    first, second = [1.0, 1.2, 0.9], [1.5, 1.4, 1.3]
    found, expected = compare(first, second, 0.05, paired=True), stats.ttest_rel(first, second)
    assert found.p_difference == pytest.approx(expected.pvalue, rel=1e-12)


def test_equivalence_is_the_larger_of_two_one_sided_tests() -> None:
    first, second, margin = [1.0, 1.02, 0.98, 1.01], [1.0, 0.99, 1.02], 0.05
    sides = (
        stats.ttest_ind(np.array(first) + margin, second, equal_var=False, alternative="greater"),
        stats.ttest_ind(np.array(first) - margin, second, equal_var=False, alternative="less"),
    )
    expected = max(side.pvalue for side in sides)
    assert compare(first, second, margin).p_equivalence == pytest.approx(expected, rel=1e-9)


def test_runs_without_scatter() -> None:
    same, other = compare([1.0, 1.0], [1.0, 1.0], 0.05), compare([1.0, 1.0], [2.0, 2.0], 0.05)
    assert verdicts([same, other], 0.05) == ["no effect", "lower"]
    with pytest.raises(ValueError, match="cannot compare 1 runs with 3"):
        compare([1.0], B, 0.05)


def test_holm() -> None:
    # Holm (1979): times 4, 3, 2, 1 in the order of the p-values, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_certain_difference_below_the_smallest_effect_is_none() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 0.001, 20), rng.normal(1.01, 0.001, 20)
    assert verdicts([compare(first, second, 0.05)], 0.05) == ["no effect"]
    assert verdicts([compare(first, second, 0.005)], 0.05) == ["lower"]


@pytest.mark.parametrize("num_runs", [3, 5, 20])
def test_false_verdicts_on_equal_groups(num_runs: int) -> None:
    """A/A: of 1,000 comparisons of runs of one kind at most 5 % are told apart, give or take.

    With a limit of three standard errors above 5 %, since chance decides here too.
    """
    rng = np.random.default_rng(num_runs)
    false = 0
    for _ in range(1000):
        first, second = rng.normal(5.8, 0.14, (2, num_runs))
        false += verdicts([compare(first, second, 0.05)], 0.05)[0] in ("lower", "higher")
    assert false <= 1000 * 0.05 + 3 * (1000 * 0.05 * 0.95) ** 0.5


def test_false_verdicts_of_a_family() -> None:
    """With Holm's correction at most 5 % of whole tables hold a false difference."""
    rng = np.random.default_rng(1)
    false = 0
    for _ in range(300):
        table = [compare(*rng.normal(5.8, 0.14, (2, 5)), 0.05) for _ in range(10)]
        false += any(word in ("lower", "higher") for word in verdicts(table, 0.05))
    assert false <= 300 * 0.05 + 3 * (300 * 0.05 * 0.95) ** 0.5


def test_false_equivalence_at_the_smallest_effect() -> None:
    rng = np.random.default_rng(2)
    false = 0
    for _ in range(1000):
        first, second = rng.normal(5.8, 0.02, 5), rng.normal(5.85, 0.02, 5)
        false += verdicts([compare(first, second, 0.05)], 0.05) == ["no effect"]
    assert false <= 1000 * 0.05 + 3 * (1000 * 0.05 * 0.95) ** 0.5


def power(num_runs: int, effect: float, spread: float, alpha: float) -> float:
    """How often a two-sided t-test of two groups sees an effect (Cohen 1988).

    Args:
        num_runs: of each group.
        effect: difference of the means.
        spread: standard deviation in each group.
        alpha: of the test.
    """
    freedom, shift = 2 * num_runs - 2, effect / spread * math.sqrt(num_runs / 2)
    limit = stats.t.ppf(1 - alpha / 2, freedom)
    return float(stats.nct.sf(limit, freedom, shift) + stats.nct.cdf(-limit, freedom, shift))


def test_power_is_how_often_the_test_sees_it() -> None:
    rng, seen = np.random.default_rng(3), 0
    for _ in range(2000):
        first, second = rng.normal(0, 0.05, 10), rng.normal(0.05, 0.05, 10)
        seen += stats.ttest_ind(first, second).pvalue <= 0.05
    assert power(10, 0.05, 0.05, 0.05) == pytest.approx(seen / 2000, abs=0.035)


def test_the_plan_says_how_many_seeds_its_power_needs() -> None:
    """The figures in the comments of `criteria.toml`."""
    stated = tomllib.loads(files("newllm.statistics").joinpath("criteria.toml").read_text())
    assert stated["seeds"]["tiny30"] == 20
    alpha, wanted = stated["alpha"], stated["power"]
    needed = next(n for n in range(2, 500) if power(n, 0.05, 0.136, alpha) >= wanted)
    assert needed == 118
    first_step = alpha / 12  # of Holm's correction
    corrected = next(n for n in range(2, 500) if power(n, 0.05, 0.14, first_step) >= wanted)
    assert corrected == 218
    assert power(20, 0.18, 0.14, first_step) >= wanted > power(20, 0.16, 0.14, first_step)
