"""How many seeds would decide a comparison that is undecided.

Power of a t-test and of two one-sided tests of equivalence (Cohen 1988; Schuirmann 1987), averaged
over the distribution of the standard error: scipy's noncentral t is inaccurate in the far tails.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

MOST_SEEDS = 1000  # larger numbers are not told
QUANTILES = (np.arange(1000) + 0.5) / 1000


class Scatter(NamedTuple):
    """Variance of the difference of a pair, or the sum of the variances of both groups."""

    variance: float
    is_paired: bool


def power_of_difference(num_runs: int, effect: float, scatter: Scatter, alpha: float) -> float:
    """Probability that a two-sided t-test finds an effect."""
    shift, limits = _shift_and_limits(num_runs, effect, scatter, alpha / 2)
    return float(np.mean(stats.norm.cdf(shift - limits) + stats.norm.cdf(-shift - limits)))


def power_of_equivalence(num_runs: int, margin: float, scatter: Scatter, alpha: float) -> float:
    """Probability that two one-sided t-tests place a difference of zero within +- `margin`."""
    shift, limits = _shift_and_limits(num_runs, margin, scatter, alpha)
    return float(np.mean(np.maximum(0, 2 * stats.norm.cdf(shift - limits) - 1)))


def _shift_and_limits(
    num_runs: int, effect: float, scatter: Scatter, alpha: float
) -> tuple[float, np.ndarray]:
    """An effect and equally likely critical values, both in true standard errors."""
    freedom = (num_runs - 1) * (1 if scatter.is_paired else 2)
    spread = math.sqrt(scatter.variance / num_runs)
    estimated = np.sqrt(stats.chi2.ppf(QUANTILES, freedom) / freedom)
    return effect / spread if spread else math.inf, stats.t.ppf(1 - alpha, freedom) * estimated


def seeds_to_see(
    scatter: Scatter, effect: float, alpha: float, power: float, at_least: int = 2
) -> int | None:
    """The number of seeds at which a t-test finds an effect; None for more than `MOST_SEEDS`."""
    return _fewest(lambda n: power_of_difference(n, effect, scatter, alpha) >= power, at_least)


def seeds_to_decide(
    scatter: Scatter, smallest_effect: float, alpha: float, power: float, at_least: int = 2
) -> int | None:
    """The number of seeds that find the smallest effect, or show that there is none as large.

    Args:
        scatter: of the runs.
        smallest_effect: in the unit of the values.
        alpha: of each of the two tests, corrected for the size of the family.
        power: wanted of each test.
        at_least: the smallest number to consider.
    """

    def decides(num_runs: int) -> bool:
        arguments = num_runs, smallest_effect, scatter, alpha
        return min(power_of_difference(*arguments), power_of_equivalence(*arguments)) >= power

    return _fewest(decides, at_least)


def _fewest(suffices: Callable[[int], bool], at_least: int) -> int | None:
    """By bisection, since power grows with the number."""
    numbers = range(at_least, MOST_SEEDS + 1)
    index = bisect_left(numbers, True, key=suffices)
    return numbers[index] if index < len(numbers) else None
