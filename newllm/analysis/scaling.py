"""How loss scales with sentences, parameters and context (`sweep=scaling`), and a law for it.

    gap = a (N / 400)^-alpha + b (P / 50,000)^-beta + c (C / 16)^-gamma

The gap is the test loss above that of the grammar, in nats per token, so that, unlike for natural
language, the irreducible part is known. Like the law of Hoffmann et al. (2022), it is fitted to
logarithms with a robust loss; a third term stands for the fixed memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from newllm.analysis.gathering import Run

SENTENCES = (400, 1000, 2000, 5000, 10_000)
UNITS = (400.0, 50_000.0, 16.0)  # the smallest of each
LARGEST = 1_000_000  # parameters that the grid goes to; what lies beyond is predicted
NAMES = ("a", "alpha", "b", "beta", "c", "gamma")
NUM_RESAMPLES, CONFIDENCE = 300, 0.95
STARTS = ((0.2, 0.2, 0.2), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One run: how much it read, what it could hold, and how far it stayed from the grammar."""

    sentences: int
    parameters: int
    context: int
    gap: float

    @property
    def is_largest(self) -> bool:
        """Whether it lies beyond the grid that the law is fitted to."""
        return self.parameters > 1.1 * LARGEST

    @property
    def scales(self) -> tuple[float, float, float]:
        """What the law depends on, in its units."""
        sizes = (self.sentences, self.parameters, self.context)
        return tuple(size / unit for size, unit in zip(sizes, UNITS, strict=True))  # type: ignore[return-value]


def points(runs: Sequence[Run]) -> list[Point]:
    """All runs of the scaling experiments that were tested, seed by seed."""
    found = []
    for run in runs:
        name, _, sentences = str(run.result.get("experiment")).partition("_")
        if run.is_done and name == "scaling" and run.result.get("test_loss") is not None:
            found.append(
                Point(
                    int(sentences),
                    run.result["parameters"],
                    int(run.choices["model.context_dim"]),
                    run.result["test_loss"] - run.result["test_oracle_loss"],
                )
            )
    return sorted(found, key=lambda p: (p.sentences, p.parameters, p.context))


@dataclass(frozen=True)
class Law:
    """The constants of the law, in the order of `NAMES`."""

    constants: tuple[float, ...]

    def gap(self, point: Point) -> float:
        """What the law says of a point."""
        return float(np.exp(_log_gap(np.log(self.constants), np.log([point.scales])))[0])

    def parts(self, point: Point) -> tuple[float, ...]:
        """What sentences, parameters and context each leave of it."""
        pairs = zip(self.constants[::2], self.constants[1::2], strict=True)
        return tuple(
            coefficient * float(scale) ** -exponent
            for (coefficient, exponent), scale in zip(pairs, point.scales, strict=True)
        )


@dataclass(frozen=True)
class Fit:
    """A law with what a bootstrap over the points says of it.

    Attributes:
        law: fitted to all points.
        resampled: laws fitted to points drawn with replacement.
        spread: standard deviation of the logarithm of measured over fitted gaps.
    """

    law: Law
    resampled: tuple[Law, ...]
    spread: float

    def constant(self, index: int) -> tuple[float, float, float]:
        """A constant of the law with its interval: value, low, high."""
        low, high = _interval([law.constants[index] for law in self.resampled])
        return self.law.constants[index], low, high

    def prediction(self, point: Point) -> tuple[float, float, float]:
        """The gap of a new run, with the interval for one: it scatters as the fitted ones do."""
        generator = np.random.default_rng(0)
        noise = np.exp(generator.normal(0.0, self.spread, len(self.resampled)))
        gaps = [law.gap(point) for law in self.resampled]
        low, high = _interval([gap * float(n) for gap, n in zip(gaps, noise, strict=True)])
        return self.law.gap(point), low, high


def fit(measured: Sequence[Point], num_resamples: int = NUM_RESAMPLES) -> Fit | None:
    """The law of the grid's points; None if there are too few of them."""
    grid = [point for point in measured if not point.is_largest]
    if len(grid) < 2 * len(NAMES):
        return None
    scales = np.log([point.scales for point in grid])
    gaps = np.log([point.gap for point in grid])
    best = min((_fit(scales, gaps, start) for start in _starts(gaps)), key=lambda found: found[1])
    constants = best[0]
    generator = np.random.default_rng(0)
    resampled = []
    for _ in range(num_resamples):
        drawn = generator.integers(0, len(grid), len(grid))
        resampled.append(_law(_fit(scales[drawn], gaps[drawn], constants)[0]))
    residuals = gaps - _log_gap(constants, scales)
    spread = float(np.sqrt(np.square(residuals).sum() / (len(grid) - len(NAMES))))
    return Fit(_law(constants), tuple(resampled), spread)


def _log_gap(log_constants: Array, log_scales: Array) -> Array:
    """Logarithms of gaps, from logarithms of the constants and of the scales [points, 3]."""
    coefficients, exponents = log_constants[::2], np.exp(log_constants[1::2])
    terms: Array = coefficients - exponents * log_scales
    total: Array = np.logaddexp.reduce(terms, axis=1)
    return total


def _starts(log_gaps: Array) -> list[Array]:
    third = float(log_gaps.mean()) - np.log(3)
    return [
        np.array([value for exponent in start for value in (third, np.log(exponent))])
        for start in STARTS
    ]


def _fit(scales: Array, gaps: Array, start: Array) -> tuple[Array, float]:
    """Logarithms of the constants, and what they cost."""
    found = least_squares(
        lambda constants: _log_gap(constants, scales) - gaps,
        start,
        loss="huber",
        f_scale=0.1,
        bounds=(np.full(len(start), -12.0), np.full(len(start), 3.0)),
    )
    return found.x, float(found.cost)


def _law(log_constants: Array) -> Law:
    return Law(tuple(float(value) for value in np.exp(log_constants)))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def best_contexts(measured: Sequence[Point]) -> dict[int, list[tuple[int, int, float]]]:
    """For each number of sentences, by parameters: the context of the least gap, and that gap."""
    best: dict[tuple[int, int], Point] = {}
    for point in measured:
        key = point.sentences, _nominal(point.parameters)
        if key not in best or point.gap < best[key].gap:
            best[key] = point
    table: dict[int, list[tuple[int, int, float]]] = {}
    for (sentences, parameters), point in sorted(best.items()):
        table.setdefault(sentences, []).append((parameters, point.context, point.gap))
    return table


def _nominal(parameters: int) -> int:
    """Two digits: runs of a budget differ by what their widths allow."""
    return int(float(f"{parameters:.1e}"))
