"""What the measurements of memory and latency say: slopes, verdicts, crossings, and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from newllm.benchmarks.decoders import CONTEXT, MODELS, TRANSFORMER
from newllm.benchmarks.memory import INFERENCE, TRAINING, Point
from newllm.reporting.drawing import BLUE, GREEN, GREY, ORANGE, PINK, Figure, plain

COLOURS = dict(zip(MODELS, (ORANGE, GREEN, PINK, BLUE), strict=True))
DASHES = dict(zip((INFERENCE, *TRAINING), ("-", "-", "--", ":"), strict=True))
NUM_FITTED = 5  # the longest lengths, where a cache is more than the weights
CONSTANT = 0.05  # the largest slope of a line that counts as constant
MARGIN = 1.05  # a model takes more than another from this ratio on; below, they are equal


@dataclass(frozen=True)
class Slope:
    """The slope of a line through points on logarithmic axes, with its 95 % interval.

    1 means growth in proportion to the length, 0 none.
    """

    value: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.value:z.2f} ± {self.half_width:.2f}"

    @property
    def verdict(self) -> str:
        """`constant`, `grows`, or `undecided`."""
        if self.value + self.half_width < CONSTANT:
            return "constant"
        return "grows" if self.value - self.half_width > CONSTANT else "undecided"


class Curve:
    """The points of a model, by length.

    Args:
        points: all that were measured.
        what: which of them.
        model: which of them.
        parameters: of all models, about.
    """

    def __init__(self, points: Sequence[Point], what: str, model: str, parameters: int) -> None:
        own = [point for point in points if (point.what, point.model) == (what, model)]
        own.sort(key=lambda point: point.length)
        self.lengths = np.array([point.length for point in own])
        # The weights are a part of it, and keep the logarithm of a rise of nothing finite.
        weights = 4e-6 * parameters
        self.megabytes = weights + np.array([point.megabytes for point in own]).clip(0)
        self.analytic = weights + 1e-6 * np.array([point.state_bytes for point in own])
        self.milliseconds = np.array([point.milliseconds or np.nan for point in own])

    def slope(self, values: np.ndarray) -> Slope:
        """The slope over the longest lengths."""
        lengths, values = self.lengths[-NUM_FITTED:], values[-NUM_FITTED:]
        fit = stats.linregress(np.log(lengths), np.log(values))
        quantile = stats.t.ppf(0.975, len(lengths) - 2)
        # Of points that are all equal, scipy knows no error.
        return Slope(float(fit.slope), float(quantile * np.nan_to_num(fit.stderr)))


def crossing(lengths: np.ndarray, rising: np.ndarray, other: np.ndarray) -> float | None:
    """The length from which on a curve stays above another; None if it ends below.

    Interpolated on logarithmic axes; the first length if it is above at all.
    """
    above = np.log(rising / other)
    if above[-1] <= 0:
        return None
    last_below = np.flatnonzero(above <= 0)
    if not len(last_below):
        return float(lengths[0])
    k = int(last_below[-1])
    share = -above[k] / (above[k + 1] - above[k])
    return float(np.exp((1 - share) * np.log(lengths[k]) + share * np.log(lengths[k + 1])))


class Findings:
    """All curves, from the content of `memory.json`."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        points = [Point(**point) for point in found["points"]]
        parameters = found["parameters"]
        self.inference = {name: Curve(points, INFERENCE, name, parameters) for name in MODELS}
        self.training = {what: Curve(points, what, CONTEXT, parameters) for what in TRAINING}
        self.tokens_per_second: Mapping[str, Mapping[str, float]] = found["tokens_per_second"]
        self.parameters = parameters

    @property
    def crossings(self) -> dict[str, float | None]:
        """The lengths from which on the Transformer takes `MARGIN` times as much or more."""
        fixed, cached = self.inference[CONTEXT], self.inference[TRANSFORMER]
        return {
            "memory": crossing(cached.lengths, cached.megabytes, MARGIN * fixed.megabytes),
            "time": crossing(cached.lengths, cached.milliseconds, MARGIN * fixed.milliseconds),
        }

    def markdown(self, machine: str) -> str:
        """The findings as tables."""
        lines = [
            f"Measured on {machine}, one thread, models of {self.parameters:,} parameters.",
            "",
            "MB: weights, and by how much the memory of the process rose above that.",
            "",
            f"| inference | {_lengths(self.inference[CONTEXT])} MB | slope | "
            f"{_lengths(self.inference[CONTEXT])} ms per token | slope |",
            "|---|---:|---:|---:|---:|",
        ]
        for name, curve in self.inference.items():
            lines.append(
                f"| {name} | {_ends(curve.megabytes, 1)} | {curve.slope(curve.megabytes)} | "
                f"{_ends(curve.milliseconds, 2)} | {curve.slope(curve.milliseconds)} |"
            )
        verdicts = {INFERENCE: self.inference[CONTEXT], **self.training}
        lines += ["", "| memory of the context model | tokens | MB | slope | |"]
        lines.append("|---|---:|---:|---:|---|")
        for what, curve in verdicts.items():
            slope = curve.slope(curve.megabytes)
            lines.append(
                f"| {what} | {_lengths(curve)} | {_ends(curve.megabytes, 1)} | {slope} | "
                f"{slope.verdict} |"
            )
        margin = f"{100 * (MARGIN - 1):.0f} %"
        lines += ["", f"The Transformer takes at least {margin} more than the context model"]
        for what, length in self.crossings.items():
            told = "at none of these lengths" if length is None else f"from {length:,.0f} tokens on"
            lines.append(f"- in {what} {told}.")
        sizes = list(self.tokens_per_second[CONTEXT])
        lines += ["", f"| tokens per second, by rows | {' | '.join(map(str, sizes))} |"]
        lines.append("|---" + "|---:" * len(sizes) + "|")
        for name, rates in self.tokens_per_second.items():
            lines.append(f"| {name} | {' | '.join(f'{rates[size]:,.0f}' for size in sizes)} |")
        return "\n".join([*lines, ""])

    def picture(self) -> Figure:
        """Memory and latency of inference, and memory of training, on logarithmic axes."""
        figure = Figure(figsize=(13, 4.4), layout="constrained")
        memory, latency, training = figure.subplots(1, 3)
        for name, curve in self.inference.items():
            line = {"color": COLOURS[name], "marker": "o", "markersize": 3}
            memory.plot(curve.lengths, curve.megabytes, label=name, **line)
            latency.plot(curve.lengths, curve.milliseconds, label=name, **line)
        cached = self.inference[TRANSFORMER]
        memory.plot(
            cached.lengths, cached.analytic, ":", color=GREY, label="weights, keys and values"
        )
        for what, curve in self.training.items():
            label = what.removeprefix("training ")
            training.plot(
                curve.lengths, curve.megabytes, DASHES[what], color=ORANGE, marker="o",
                markersize=3, label=label,
            )  # fmt: skip
        _label(memory, "memory of inference", "MB, weights included")
        _label(latency, "latency of inference", "ms per token")
        _label(training, "memory of training, context model", "MB, weights included")
        for what, axes in {"memory": memory, "time": latency}.items():
            if (length := self.crossings[what]) is not None:
                axes.axvline(length, color=GREY, linewidth=1, zorder=0)
        return figure


def _label(axes: Axes, title: str, unit: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("tokens")
    axes.set_ylabel(unit)
    axes.legend(fontsize=8, frameon=False)
    plain(axes)


def _lengths(curve: Curve) -> str:
    return f"{curve.lengths[0]:,} → {curve.lengths[-1]:,}"


def _ends(values: np.ndarray, digits: int) -> str:
    return f"{values[0]:,.{digits}f} → {values[-1]:,.{digits}f}"
