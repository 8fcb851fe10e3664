"""How loss scales with sentences, parameters and context (`sweep=scaling`), and a law for it.

    gap = a (N / 400)^-alpha + b (H / 16)^-beta + c (C / 16)^-gamma

for N sentences, layers H wide and a context of C numbers. The gap is the test loss above that of
the grammar, in nats per token, so that, unlike for natural language, the irreducible part is known.
As in the law of Hoffmann et al. (2022), what limits the model are terms of a sum, fitted to
logarithms with a robust loss. Width stands in the place of their parameters: at equal parameters a
larger context leaves narrower layers, so that a best context can follow from the law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from newllm.analysis.gathering import Run
from newllm.analysis.statistics import CONFIDENCE

SENTENCES = (400, 1000, 2000, 5000, 10_000)
UNITS = (400.0, 16.0, 16.0)  # of sentences, width and context
MOST_PARAMETERS = 1_000_000  # of the grid; what lies beyond is predicted
NAMES = ("a", "alpha", "b", "beta", "c", "gamma")
NUM_RESAMPLES = 1000
STARTS = ((0.2, 0.2, 0.2), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One run: how much it read, what it could hold, and how far it stayed from the grammar."""

    sentences: int
    parameters: int
    width: int
    context: int
    gap: float

    @property
    def is_largest(self) -> bool:
        """Whether it lies beyond the grid that the law is fitted to."""
        return self.parameters > 1.1 * MOST_PARAMETERS

    @property
    def model(self) -> tuple[int, int]:
        """Parameters (to two digits, since a budget is kept as nearly as widths allow), context."""
        return int(float(f"{self.parameters:.1e}")), self.context

    @property
    def scales(self) -> tuple[float, ...]:
        """What the law depends on, in its units."""
        sizes = (self.sentences, self.width, self.context)
        return tuple(size / unit for size, unit in zip(sizes, UNITS, strict=True))


def points(runs: Sequence[Run]) -> list[Point]:
    """The runs of `sweep=scaling` and `sweep=scaling_largest`."""
    found = [point for run in runs if (point := point_of(run))]
    return sorted(found, key=lambda p: (p.sentences, p.parameters, p.context))


def point_of(run: Run) -> Point | None:
    """What a run says of scaling; None if it is no run of these sweeps, or was not tested.

    Nor does one that is no worse than the grammar: such a gap has no logarithm.
    """
    name, _, sentences = str(run.result.get("experiment")).partition("_")
    test_loss, oracle = (run.result.get(key) for key in ("test_loss", "test_oracle_loss"))
    is_one = name == "scaling" and run.choices.keys() == {"scale", "model.context_dim"}
    if not (is_one and run.is_done) or test_loss is None or oracle is None or test_loss <= oracle:
        return None
    sizes = run.result["sizes"]
    return Point(
        int(sentences),
        run.result["parameters"],
        sizes["hidden_dim"],
        sizes["context_dim"],
        test_loss - oracle,
    )


@dataclass(frozen=True)
class Law:
    """The constants of the law, in the order of `NAMES`."""

    constants: tuple[float, ...]

    def gap(self, point: Point) -> float:
        """What the law says of a point."""
        return float(np.exp(_log_gap(np.log(self.constants), np.log([point.scales])))[0])


@dataclass(frozen=True)
class Fit:
    """A law with what a bootstrap says of it.

    Attributes:
        law: fitted to all points.
        resampled: laws fitted to models drawn with replacement, each with all its points: where the
            law misses a model, it does so for any number of sentences.
        spread: standard deviation of the logarithm of measured over fitted gaps, by which runs
            scatter and the law misses.
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
    models = sorted({point.model for point in grid})
    places = [[i for i, point in enumerate(grid) if point.model == model] for model in models]
    resampled = []
    for _ in range(num_resamples):
        chosen = generator.integers(0, len(models), len(models))
        drawn = [place for index in chosen for place in places[index]]
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


def best_contexts(measured: Sequence[Point]) -> dict[int, dict[int, Point]]:
    """For each number of sentences, by parameters: the point of the least gap."""
    table: dict[int, dict[int, Point]] = {}
    for point in sorted(measured, key=lambda point: -point.gap):
        table.setdefault(point.sentences, {})[point.model[0]] = point
    return table
