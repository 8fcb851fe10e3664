"""Means with intervals over a few runs that differ in their seed, and verdicts on differences."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over runs and its 95 % interval by Student's t; infinite for one run."""

    mean: float
    half_width: float
    num_runs: int

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of at least one value, with the interval for the true mean."""
    if not values:
        raise ValueError("an interval needs at least one value")
    n = len(values)
    mean = float(np.mean(values))
    if n == 1:
        return Interval(mean, math.inf, 1)
    return Interval(mean, _quantile(n - 1) * float(stats.sem(values)), n)


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float]:
    """The ratio of the sums over independent units, and the half-width of its 95 % interval.

    By the linearization of the ratio (Cochran 1977, chapter 6) and Student's t; infinite for one
    unit.
    """
    n = len(numerators)
    ratio = float(numerators.sum() / denominators.sum())
    if n == 1:
        return ratio, math.inf
    residuals = numerators - ratio * denominators
    error = math.sqrt(n * residuals.var(ddof=1)) / float(denominators.sum())
    return ratio, _quantile(n - 1) * error


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


@dataclass(frozen=True)
class Criteria:
    """The rules by which runs are judged; see `criteria.toml`."""

    metric: str
    smallest_effects: Mapping[str, float]
    alpha: float
    power: float
    seeds: Mapping[str, int]


@cache
def criteria() -> Criteria:
    """The rules of this package."""
    stated = tomllib.loads(files("newllm.statistics").joinpath("criteria.toml").read_text())
    return Criteria(**{field.name: stated[field.name] for field in fields(Criteria)})


@dataclass(frozen=True)
class Comparison:
    """Two groups of runs, or pairs of runs. Differences are first minus second.

    Attributes:
        first: a value for each run.
        second: the same; in the order of `first` if paired.
        is_paired: whether values were compared in pairs.
        interval: of the difference of the means.
        p_difference: two-sided p-value of the test of difference.
        p_equivalence: p-value of the test that the difference is below the smallest effect.
    """

    first: Sequence[float]
    second: Sequence[float]
    is_paired: bool
    interval: Interval
    p_difference: float
    p_equivalence: float


def compare(
    first: Sequence[float], second: Sequence[float], smallest_effect: float, paired: bool = False
) -> Comparison:
    """Welch's t-tests of two groups, or Student's of the differences of pairs.

    Raises:
        ValueError: there are fewer than two values on a side, or pairs that do not match.
    """
    if min(len(first), len(second)) < 2 or (paired and len(first) != len(second)):
        raise ValueError(f"cannot compare {len(first)} runs with {len(second)}")
    mean, number = float(np.mean(first) - np.mean(second)), min(len(first), len(second))
    if paired:
        spread, freedom = float(stats.sem(np.subtract(first, second))), number - 1.0
    else:
        a, b = stats.sem(first) ** 2, stats.sem(second) ** 2
        spread = math.sqrt(a + b)
        # Welch-Satterthwaite; without scatter any value will do.
        freedom = (
            (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1)) if a + b else 1.0
        )
    return Comparison(
        first,
        second,
        paired,
        Interval(mean, _quantile(freedom) * spread, number),
        p_difference=2 * _tail(abs(mean), spread, freedom),
        p_equivalence=_tail(smallest_effect - abs(mean), spread, freedom),
    )


def _tail(distance: float, spread: float, freedom: float) -> float:
    """Probability of a t statistic above distance / spread; scipy gives nan without a spread."""
    if spread == 0:
        return 0.5 if distance == 0 else float(distance < 0)
    return float(stats.t.sf(distance / spread, freedom))


def compare_by_seed(
    first: Mapping[int, float],
    second: Mapping[int, float],
    smallest_effect: float,
    belong_together: bool,
) -> Comparison | None:
    """Compare values by seed; None with fewer than two on a side.

    If runs of one seed belong together and at least two seeds are on both sides, those are compared
    in pairs.
    """
    shared = first.keys() & second.keys()
    is_paired = belong_together and len(shared) >= 2
    a, b = (
        [side[seed] for seed in sorted(shared if is_paired else side)] for side in (first, second)
    )
    return compare(a, b, smallest_effect, is_paired) if min(len(a), len(b)) >= 2 else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979): each may be compared with the alpha of the family."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.sort(p_values) * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return [float(p) for p in adjusted]


def verdicts(comparisons: Sequence[Comparison], alpha: float) -> list[str]:
    """`lower`, `higher`, `no effect` or `undecided` for each comparison of a family.

    A difference that is certainly below the smallest effect is `no effect`, however certain it is.
    """
    differences = holm([comparison.p_difference for comparison in comparisons])
    equivalences = holm([comparison.p_equivalence for comparison in comparisons])
    found = []
    for comparison, p_difference, p_equivalence in zip(
        comparisons, differences, equivalences, strict=True
    ):
        if p_equivalence <= alpha:
            found.append("no effect")
        elif p_difference <= alpha:
            found.append("lower" if comparison.interval.mean < 0 else "higher")
        else:
            found.append("undecided")
    return found
