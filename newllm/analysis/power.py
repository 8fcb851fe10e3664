"""How many seeds would decide a comparison that is undecided.

The smallest number at which a t-test sees the smallest effect and two one-sided tests show that no
effect is as large, each with the power of the plan. Both statistics follow a noncentral t
(Cohen 1988; Phillips 1990).
"""

from __future__ import annotations

import math

from scipy import stats

MOST_SEEDS = 1000  # more are not worth counting


def power_of_difference(
    num_runs: int, effect: float, variance: float, alpha: float, is_paired: bool
) -> float:
    """How often a two-sided t-test sees an effect.

    Args:
        num_runs: pairs, or runs on each side.
        effect: difference of the means.
        variance: of the difference of two runs: of a pair, or the sum of both sides' variances.
        alpha: of the test.
        is_paired: whether runs are compared in pairs.
    """
    freedom, shift = _freedom_and_shift(num_runs, effect, variance, is_paired)
    limit = stats.t.ppf(1 - alpha / 2, freedom)
    return float(stats.nct.sf(limit, freedom, shift) + stats.nct.cdf(-limit, freedom, shift))


def power_of_equivalence(
    num_runs: int, margin: float, variance: float, alpha: float, is_paired: bool
) -> float:
    """How often two one-sided t-tests show that a difference of zero is within +- `margin`.

    Arguments as those of `power_of_difference`. A lower bound, close where the power is high.
    """
    freedom, shift = _freedom_and_shift(num_runs, margin, variance, is_paired)
    limit = stats.t.ppf(1 - alpha, freedom)
    return max(0.0, 2 * float(stats.nct.sf(limit, freedom, shift)) - 1)


def _freedom_and_shift(
    num_runs: int, effect: float, variance: float, is_paired: bool
) -> tuple[int, float]:
    freedom = (num_runs - 1) * (1 if is_paired else 2)
    return freedom, effect / math.sqrt(variance / num_runs)


def seeds_to_decide(
    variance: float, smallest_effect: float, alpha: float, power: float, is_paired: bool
) -> int | None:
    """The number of seeds, by bisection; None if more than `MOST_SEEDS`.

    Args:
        variance: of the difference of two runs, as in `power_of_difference`.
        smallest_effect: in the unit of the values.
        alpha: of each of the two tests, corrected for the size of the family.
        power: wanted of each.
        is_paired: whether runs are compared in pairs.
    """
    if variance == 0:
        return 2

    def decides(num_runs: int) -> bool:
        arguments = (num_runs, smallest_effect, variance, alpha, is_paired)
        return min(power_of_difference(*arguments), power_of_equivalence(*arguments)) >= power

    if not decides(MOST_SEEDS):
        return None
    too_few, enough = 1, MOST_SEEDS
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if decides(middle) else (middle, enough)
    return enough
