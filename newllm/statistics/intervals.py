"""Means with intervals for a few runs that differ in their seed, and verdicts on differences."""

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
    """The mean of some values and where the mean of many more would lie.

    Raises:
        ValueError: without a value.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    n = len(values)
    mean = float(np.mean(values))
    if n == 1:
        return Interval(mean, math.inf, 1)
    return Interval(mean, _quantile(n) * float(np.std(values, ddof=1)) / math.sqrt(n), n)


def next_run_interval(values: Sequence[float]) -> Interval:
    """Where a single further run would lie, with the same confidence."""
    n = len(values)
    if n < 2:
        return mean_interval(values)
    spread = float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / n)
    return Interval(float(np.mean(values)), _quantile(n) * spread, n)


def _quantile(n: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))


@dataclass(frozen=True)
class Criteria:
    """How runs are judged, decided before they were made; see `criteria.toml`."""

    metric: str
    smallest_effects: Mapping[str, float]
    alpha: float
    power: float
    seeds: Mapping[str, int]


@cache
def criteria() -> Criteria:
    """Those of this package."""
    stated = tomllib.loads(files("newllm.statistics").joinpath("criteria.toml").read_text())
    return Criteria(**{field.name: stated[field.name] for field in fields(Criteria)})


@dataclass(frozen=True)
class Comparison:
    """Two groups of runs, or pairs of them; differences are first minus second.

    Attributes:
        interval: of the difference of the means.
        p_difference: that means as far apart are drawn from equal ones.
        p_equivalence: that means as near are drawn from ones a smallest effect apart, or more.
    """

    interval: Interval
    p_difference: float
    p_equivalence: float

    @property
    def difference(self) -> float:
        return self.interval.mean


def compare(
    first: Sequence[float], second: Sequence[float], smallest_effect: float, paired: bool = False
) -> Comparison:
    """Welch's tests of two groups, or Student's of the differences of pairs.

    Args:
        first: one value for each run.
        second: the same; if paired, in the same order.
        smallest_effect: what the equivalence test calls different.
        paired: whether runs belong together, as those of one seed do.

    Raises:
        ValueError: fewer than two values on a side, or pairs that do not match.
    """
    if min(len(first), len(second)) < 2 or (paired and len(first) != len(second)):
        raise ValueError(f"cannot compare {len(first)} runs with {len(second)}")
    if paired:
        differences = np.subtract(first, second)
        mean, spread = float(differences.mean()), float(stats.sem(differences))
        freedom, number = len(differences) - 1.0, len(differences)
    else:
        a, b = stats.sem(first) ** 2, stats.sem(second) ** 2
        mean, spread = float(np.mean(first) - np.mean(second)), math.sqrt(a + b)
        number = min(len(first), len(second))
        # Welch-Satterthwaite; without any scatter every t is infinite or none.
        freedom = (
            (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1)) if a + b else 1.0
        )
    half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * spread
    return Comparison(
        Interval(mean, half_width, number),
        p_difference=2 * _tail(abs(mean), spread, freedom),
        p_equivalence=_tail(smallest_effect - abs(mean), spread, freedom),
    )


def _tail(distance: float, spread: float, freedom: float) -> float:
    """Probability of a t statistic above distance / spread."""
    if spread == 0:
        return 0.5 if distance == 0 else float(distance < 0)
    return float(stats.t.sf(distance / spread, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979): each may be compared with the alpha of the family."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def verdicts(comparisons: Sequence[Comparison], alpha: float) -> list[str]:
    """`lower`, `higher`, `no effect` or `undecided` for each of a family of comparisons.

    A difference that is certainly below the smallest effect is none, however certain it is.
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
            found.append("lower" if comparison.difference < 0 else "higher")
        else:
            found.append("undecided")
    return found
