"""Figures of variants side by side. Each function returns a matplotlib Figure.

A variant has one colour and line style in all of them; colours are those of Okabe & Ito (2008).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from newllm.reporting.drawing import Figure, epoch_axis
from newllm.reporting.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    YELLOW,
    plain,
    reference_lines,
)
from newllm.statistics.comparisons import Contest, Standing
from newllm.statistics.intervals import criteria, mean_interval
from newllm.statistics.variants import Variant

MOST_CURVES = 8
MOST_ROWS = 30
SKY, BLACK = "#56B4E9", "#000000"
COLOURS = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK)
DASHES = ("-", "--", ":")
# Of a training that is not short: what comes before it may lie out of view, else all that matters
# is one line.
START, SHORT = 0.25, 10

Words = Callable[[str], str]


def styles(standings: Sequence[Standing]) -> dict[str, tuple[str, str]]:
    """Colour and line style by label; the first 21 are all different."""
    return {
        standing.variant.label: (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, standing in enumerate(standings)
    }


def forest(contest: Contest, words: Words = str) -> Figure:
    """Best losses of all seeds with their means, and differences from the baseline.

    Bars are 95 % intervals; the shaded zone is that of effects too small to matter.

    Args:
        contest: one with a variant that has a result.
        words: translates a label.
    """
    rows = contest.foremost(MOST_ROWS)
    figure = Figure(figsize=(11, 1.25 + 0.34 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colours = styles(contest.foremost(MOST_CURVES))
    for height, standing in enumerate(rows):
        colour = colours.get(standing.variant.label, (GREY, ""))[0]
        _losses(left, standing.variant, height, colour)
        _difference(right, standing, contest, height, colour, words)
    left.set_yticks(
        range(len(rows)), ["\n".join(textwrap.wrap(s.variant.label, 34)) for s in rows], fontsize=8
    )
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_xlabel(words("best validation loss (nats per token)"), fontsize=9)
    left.set_title(contest.corpus, loc="left", fontsize=10)
    effect = criteria().smallest_effects["loss"]
    right.axvspan(-effect, effect, color=GREY, alpha=0.15, linewidth=0)
    right.axvline(0, color=GREY, linewidth=1)
    about = words("difference from the baseline (nats; shaded: within {effect}, no effect)")
    right.set_xlabel(about.format(effect=effect), fontsize=9)
    _limit(left, [loss for s in rows for loss in s.variant.by_seed(criteria().metric).values()])
    _limit(right, [-1.5 * effect, 1.5 * effect, *(_points(s, contest) for s in rows)])
    for axes in (left, right):
        plain(axes)
        axes.tick_params(labelsize=8)
    return figure


def _losses(axes: Axes, variant: Variant, height: int, colour: str) -> None:
    losses = list(variant.by_seed(criteria().metric).values())
    axes.plot(losses, [height] * len(losses), "|", color=colour, alpha=0.6, ms=9)
    loss = variant.loss
    if loss is not None:
        if math.isfinite(loss.half_width):
            axes.plot([loss.low, loss.high], [height, height], color=colour, linewidth=2)
        axes.plot(loss.mean, height, "o", color=colour, ms=6)


def _points(standing: Standing, contest: Contest) -> float:
    """Where the difference of a variant is drawn: of the means, where nothing was compared."""
    if standing.difference:
        return standing.difference.mean
    own, base = standing.variant.loss, contest.baseline.loss
    return own.mean - base.mean if own and base else 0.0


def _difference(
    axes: Axes, standing: Standing, contest: Contest, height: int, colour: str, words: Words
) -> None:
    interval, verdict = standing.difference, words(standing.verdict)
    if interval is not None:
        axes.plot([interval.low, interval.high], [height, height], color=colour, linewidth=2)
        axes.plot(interval.mean, height, "o", color=colour, ms=6)
    elif standing.variant.loss and standing.variant is not contest.baseline:
        axes.plot(_points(standing, contest), height, "o", mfc="none", mec=colour, ms=6)
    axes.annotate(
        verdict,
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        annotation_clip=False,
    )


def _limit(axes: Axes, points: Sequence[float]) -> None:
    """Show all points, and of an interval that is far wider than these what fits."""
    low, high = axes.get_xlim()
    span = max(points) - min(points) or abs(points[0]) * 0.01 or 1.0
    axes.set_xlim(max(low, min(points) - 2 * span), min(high, max(points) + 2 * span))


def curves(contests: Sequence[Contest], words: Words = str) -> Figure:
    """Validation loss by epoch: mean and 95 % band over seeds, a panel for each corpus.

    Bands go as far as all seeds of a variant do. References are level lines where all variants of a
    corpus share them.

    Args:
        contests: with at least one curve.
        words: translates a label.
    """
    figure = Figure(figsize=(11, 4.6 * len(contests)), layout="constrained")
    panels = figure.subplots(len(contests), 1, squeeze=False)[:, 0]
    for axes, contest in zip(panels, contests, strict=True):
        drawn = [s for s in contest.foremost(MOST_CURVES) if s.variant.curve("epoch")]
        names = styles(drawn)
        lines = [
            _band(axes, standing.variant, *style)
            for standing, style in zip(drawn, names.values(), strict=True)
        ]
        _view(axes, [s.variant for s in drawn])
        reference_lines(axes, contest.references)
        epoch_axis(axes, words("epoch"))
        axes.set_ylabel(words("validation loss (nats per token)"))
        axes.set_title(contest.corpus, loc="left", fontsize=10)
        plain(axes)
        labels = [textwrap.fill(name, 34) for name in names]
        below = {"loc": "upper left", "bbox_to_anchor": (0, -0.12), "ncols": 3}
        axes.legend(lines, labels, **below, fontsize=8, frameon=False)
    return figure


def has_curves(contest: Contest) -> bool:
    """Whether there is anything to draw."""
    return any(s.variant.curve("epoch") for s in contest.foremost(MOST_CURVES))


def _band(axes: Axes, variant: Variant, colour: str, dashes: str) -> Line2D:
    """Draw the mean over seeds with its band; returns the line of means."""
    rows = variant.curve("epoch")
    epochs = [epoch for epoch, _ in rows]
    intervals = [mean_interval(losses) for _, losses in rows]
    means = [interval.mean for interval in intervals]
    marker = "o" if len(rows) < 3 else None
    (line,) = axes.plot(epochs, means, dashes, color=colour, marker=marker, linewidth=1.6)
    if intervals[0].num_runs > 1:
        low, high = [i.low for i in intervals], [i.high for i in intervals]
        axes.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
    return line


def _view(axes: Axes, drawn: Sequence[Variant]) -> None:
    """From just below the lowest loss up to the highest after the start of the training."""
    losses, late = [], []
    for variant in drawn:
        rows = variant.curve("epoch")
        first = START * len(rows) if len(rows) >= SHORT else 0
        for number, (_, values) in enumerate(rows, 1):
            losses += values
            if number >= first:
                late += values
    known = [loss for loss in losses if math.isfinite(loss)]
    if not known:
        return
    low, high = min(known), max((loss for loss in late if math.isfinite(loss)), default=max(known))
    margin = 0.08 * (high - low) or 0.05
    axes.set_ylim(low - 2 * margin, high + margin)
