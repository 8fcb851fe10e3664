"""Means with intervals, for a few runs that differ in their seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
