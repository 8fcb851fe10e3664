"""How loss scales with sentences, parameters and context (`sweep=scaling`), and a law for it.

    gap = a (H / 16)^delta (C / 16)^gamma 400 / (N + N0)  +  b (N / 400)^-kappa (H / 16)^-beta

for N sentences, layers H wide and a context of C numbers. The gap is the test loss above that of
the grammar, in nats per token, so that, unlike for natural language, the irreducible part is known.

The first term is what is badly estimated: it goes with one over the sentences, as the excess loss
of any estimate does, but hardly with the number of parameters, as that of an unregularised one
would. The second is what a model that is too narrow has not learned. The form was found on the grid
itself, after sums of a power of each size (as of Hoffmann et al. 2022) had missed it: what it says
of a width beyond the grid is its test. It is fitted to logarithms with a robust loss. As the number
of parameters enters by the width alone, it holds for this depth, and for recipes that go with N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from newllm.runs.gathering import Run
from newllm.statistics.intervals import CONFIDENCE

NAME, LARGEST = "scaling", "largest"  # the study, and its variant beyond the grid
UNITS = (400.0, 16.0, 16.0)  # of sentences, width and context
NAMES = ("a", "N0", "delta", "gamma", "b", "kappa", "beta")
# Those above zero are fitted by their logarithms; N0, given in sentences, in their unit.
POSITIVE = np.array([name in ("a", "N0", "b") for name in NAMES])
UNIT_OF = np.array([UNITS[0] if name == "N0" else 1.0 for name in NAMES])
START = (0.2, 200.0, 0.0, 0.0, 0.02, 1.0, 2.0)
LOWEST = (1e-4, 0.4, -2.0, -2.0, 1e-8, 0.0, 0.0)
HIGHEST = (1e2, 4e5, 2.0, 2.0, 1e2, 8.0, 8.0)
NUM_RESAMPLES = 1000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One run: how much it read, what it could hold, and how far it stayed from the grammar.

    `is_largest` says that it lies beyond the grid that the law is fitted to.
    """

    sentences: int
    parameters: int
    width: int
    context: int
    gap: float
    is_largest: bool = False

    @property
    def model(self) -> tuple[int, int]:
        """Parameters (to two digits, since a budget is kept as nearly as widths allow), context."""
        return int(float(f"{self.parameters:.1e}")), self.context

    @property
    def scales(self) -> tuple[float, ...]:
        """The variables of the law, in its units."""
        sizes = (self.sentences, self.width, self.context)
        return tuple(size / unit for size, unit in zip(sizes, UNITS, strict=True))


def points(runs: Sequence[Run]) -> list[Point]:
    """The runs of `sweep=scaling`."""
    found = [point for run in runs if (point := point_of(run))]
    return sorted(found, key=lambda p: (p.sentences, p.parameters, p.context))


def point_of(run: Run) -> Point | None:
    """The point of a run; None if it is not of this sweep, or was not tested."""
    test_loss, oracle = (run.result.get(key) for key in ("test_loss", "test_oracle_loss"))
    is_largest = run.known_as == LARGEST
    is_one = run.study == NAME and [*run.choices] == ["model.context_dim"] * (not is_largest)
    if not (is_one and run.is_done) or test_loss is None or oracle is None:
        return None
    sizes = run.result["sizes"]
    return Point(
        int(run.chose("data.train_sentences") or 0),
        run.result["parameters"],
        sizes["hidden_dim"],
        sizes["context_dim"],
        test_loss - oracle,
        is_largest,
    )


@dataclass(frozen=True)
class Law:
    """The constants of the law, in the order of `NAMES`."""

    constants: tuple[float, ...]

    def gap(self, point: Point) -> float:
        """The gap by the law."""
        return float(np.exp(_log_gap(_to_fitted(self.constants), _log_scales([point])))[0])


@dataclass(frozen=True)
class Fit:
    """A law with its bootstrap.

    Attributes:
        law: fitted to all points.
        resampled: laws fitted to models drawn with replacement, each with all its points: where the
            law misses a model for some N, it does for others. What few models decide on comes out
            as uncertain as it is. What all models share, the recipe and the sentences of each N,
            is taken as given.
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
    """The law of the grid's points that lie above the grammar; None if there are too few."""
    grid = [point for point in measured if not point.is_largest and point.gap > 0]
    if len(grid) < 2 * len(NAMES):
        return None
    scales, gaps = _log_scales(grid), np.log([point.gap for point in grid])
    constants = _fit(scales, gaps, _to_fitted(START))
    models = sorted({point.model for point in grid})
    places = [[i for i, point in enumerate(grid) if point.model == model] for model in models]
    generator = np.random.default_rng(0)
    resampled = []
    for _ in range(num_resamples):
        chosen = generator.integers(0, len(models), len(models))
        drawn = [place for index in chosen for place in places[index]]
        resampled.append(_law(_fit(scales[drawn], gaps[drawn], constants)))
    residuals = gaps - _log_gap(constants, scales)
    spread = float(np.sqrt(np.square(residuals).sum() / (len(grid) - len(NAMES))))
    return Fit(_law(constants), tuple(resampled), spread)


def _log_scales(points: Sequence[Point]) -> Array:
    """Logarithms of sentences, width and context in their units [points, 3]."""
    return np.log([point.scales for point in points])


def _log_gap(fitted: Array, log_scales: Array) -> Array:
    """Logarithms of gaps, from constants as they are fitted and logarithms of scales."""
    log_a, log_n0, delta, gamma, log_b, kappa, beta = fitted
    sentences, width, context = log_scales.T
    estimated = log_a + delta * width + gamma * context - np.logaddexp(sentences, log_n0)
    learned = log_b - kappa * sentences - beta * width
    total: Array = np.logaddexp(estimated, learned)
    return total


def _fit(scales: Array, gaps: Array, start: Array) -> Array:
    """The constants as they are fitted."""
    found = least_squares(
        lambda constants: _log_gap(constants, scales) - gaps,
        start,
        loss="huber",
        f_scale=0.1,
        bounds=(_to_fitted(LOWEST), _to_fitted(HIGHEST)),
    )
    return np.asarray(found.x)


def _to_fitted(constants: Sequence[float]) -> Array:
    values = np.array(constants) / UNIT_OF
    return np.where(POSITIVE, np.log(np.where(POSITIVE, values, 1.0)), values)


def _law(fitted: Array) -> Law:
    values = np.where(POSITIVE, np.exp(np.where(POSITIVE, fitted, 0.0)), fitted) * UNIT_OF
    return Law(tuple(float(value) for value in values))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def best_contexts(
    measured: Sequence[Point], factor: float
) -> dict[int, dict[int, tuple[list[int], float]]]:
    """For each number of sentences, by parameters: contexts as good as the best, and its gap.

    Args:
        measured: where several have the same sizes, their mean counts.
        factor: how many times the least gap a gap may be to be as good, since runs scatter.
    """
    gaps: dict[tuple[int, int], dict[int, list[float]]] = {}
    for point in measured:
        parameters, context = point.model
        found = gaps.setdefault((point.sentences, parameters), {})
        found.setdefault(context, []).append(point.gap)
    table: dict[int, dict[int, tuple[list[int], float]]] = {}
    for (sentences, parameters), by_context in sorted(gaps.items()):
        means = {context: fmean(values) for context, values in sorted(by_context.items())}
        least = min(means.values())
        good = [context for context, mean in means.items() if mean <= factor * least]
        table.setdefault(sentences, {})[parameters] = good, least
    return table
