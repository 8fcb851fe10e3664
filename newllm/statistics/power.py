"""How many seeds would decide a comparison that is undecided.

Power of a t-test and of two one-sided tests of equivalence (Cohen 1988; Schuirmann 1987), as the
mean over what the standard error may come out as: scipy's noncentral t is wrong far out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

MOST_SEEDS = 1000  # more are not worth counting
CHANCES = (np.arange(1000) + 0.5) / 1000


@dataclass(frozen=True)
class Scatter:
    """How much the difference of two runs scatters.

    Attributes:
        variance: of the difference of a pair, or the sum of the variances of both groups.
        is_paired: whether runs are compared in pairs.
    """

    variance: float
    is_paired: bool


def power_of_difference(num_runs: int, effect: float, scatter: Scatter, alpha: float) -> float:
    """How often a two-sided t-test sees an effect."""
    shift, limits = _shift_and_limits(num_runs, effect, scatter, alpha / 2)
    return float(np.mean(stats.norm.cdf(shift - limits) + stats.norm.cdf(-shift - limits)))


def power_of_equivalence(num_runs: int, margin: float, scatter: Scatter, alpha: float) -> float:
    """How often two one-sided t-tests show that a difference of zero is within +- `margin`."""
    shift, limits = _shift_and_limits(num_runs, margin, scatter, alpha)
    return float(np.mean(np.maximum(0, 2 * stats.norm.cdf(shift - limits) - 1)))


def _shift_and_limits(
    num_runs: int, effect: float, scatter: Scatter, alpha: float
) -> tuple[float, np.ndarray]:
    """An effect and equally likely critical values, both in true standard errors."""
    freedom = (num_runs - 1) * (1 if scatter.is_paired else 2)
    spread = math.sqrt(scatter.variance / num_runs)
    estimated = np.sqrt(stats.chi2.ppf(CHANCES, freedom) / freedom)
    return effect / spread if spread else math.inf, stats.t.ppf(1 - alpha, freedom) * estimated


def seeds_to_see(
    scatter: Scatter, effect: float, alpha: float, power: float, at_least: int = 2
) -> int | None:
    """The number of seeds at which a t-test sees an effect; None if more than `MOST_SEEDS`."""
    return _fewest(lambda n: power_of_difference(n, effect, scatter, alpha) >= power, at_least)


def seeds_to_decide(
    scatter: Scatter, smallest_effect: float, alpha: float, power: float, at_least: int = 2
) -> int | None:
    """The number of seeds that see the smallest effect, and show that there is none as large.

    Args:
        scatter: of the runs.
        smallest_effect: in the unit of the values.
        alpha: of each of the two tests, corrected for the size of the family.
        power: wanted of each.
        at_least: the smallest number to consider.
    """

    def decides(num_runs: int) -> bool:
        arguments = num_runs, smallest_effect, scatter, alpha
        return min(power_of_difference(*arguments), power_of_equivalence(*arguments)) >= power

    return _fewest(decides, at_least)


def _fewest(suffices: Callable[[int], bool], at_least: int) -> int | None:
    """By bisection, as power grows with the number."""
    if not suffices(MOST_SEEDS):
        return None
    too_few, enough = at_least - 1, MOST_SEEDS
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if suffices(middle) else (middle, enough)
    return enough
