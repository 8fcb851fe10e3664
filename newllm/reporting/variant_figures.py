"""Figures of variants side by side. A variant has one colour and line style in all of them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from newllm.reporting.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    Figure,
    epoch_axis,
    plain,
)
from newllm.reporting.figures import reference_lines
from newllm.reporting.translation import Translate
from newllm.statistics.comparisons import Contest, Standing
from newllm.statistics.intervals import criteria, mean_interval
from newllm.statistics.variants import Variant

MOST_CURVES = 8
MOST_ROWS = 30
COLOURS = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK)
DASHES = ("-", "--", ":")
# The first quarter of a training of ten epochs or more may lie above the axes.
START, SHORT = 0.25, 10


def styles(standings: Sequence[Standing]) -> dict[str, tuple[str, str]]:
    """Colour and line style by label; the first 21 are all different."""
    return {
        standing.variant.label: (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)])
        for i, standing in enumerate(standings)
    }


def _in_lines(label: str) -> str:
    return "\n".join(textwrap.wrap(label, 34, max_lines=2, placeholder=" …"))


def forest(contest: Contest, words: Translate) -> Figure:
    """Best losses of all seeds with their means, and differences from the baseline.

    Bars are 95 % intervals; the shaded zone is that of effects too small to matter.

    Args:
        contest: with at least one variant that has a result.
        words: translates labels.
    """
    rows = contest.foremost(MOST_ROWS)
    figure = Figure(figsize=(11, 1.25 + 0.34 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colours = styles(contest.foremost(MOST_CURVES))
    losses, differences = [], []
    for height, standing in enumerate(rows):
        colour = colours.get(standing.variant.label, (GREY, ""))[0]
        losses += _draw_losses(left, standing.variant, height, colour)
        differences.append(_draw_difference(right, standing, contest, height, colour))
        right.annotate(
            words(standing.verdict),
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    left.set_yticks(range(len(rows)), [_in_lines(s.variant.label) for s in rows], fontsize=8)
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_xlabel(words("best validation loss (nats per token)"), fontsize=9)
    left.set_title(contest.corpus, loc="left", fontsize=10)
    effect = criteria().smallest_effects["loss"]
    right.axvspan(-effect, effect, color=GREY, alpha=0.15, linewidth=0)
    right.axvline(0, color=GREY, linewidth=1)
    about = words("difference from the baseline (nats; shaded: within {effect}, no effect)")
    right.set_xlabel(about.format(effect=effect), fontsize=9)
    for axes, points in ((left, losses), (right, [-1.5 * effect, 1.5 * effect, *differences])):
        # All points are shown, and of an interval that is far wider what fits.
        low, high = axes.get_xlim()
        span = max(points) - min(points) or abs(points[0]) * 0.01 or 1.0
        axes.set_xlim(max(low, min(points) - 2 * span), min(high, max(points) + 2 * span))
        axes.tick_params(labelsize=8)
        plain(axes)
    return figure


def _draw_losses(axes: Axes, variant: Variant, height: int, colour: str) -> list[float]:
    """Draw a variant's losses, mean and interval; returns the losses."""
    losses = list(variant.by_seed(criteria().metric).values())
    axes.plot(losses, [height] * len(losses), "|", color=colour, alpha=0.6, ms=9)
    if loss := variant.loss:
        if math.isfinite(loss.half_width):
            axes.plot([loss.low, loss.high], [height, height], color=colour, linewidth=2)
        axes.plot(loss.mean, height, "o", color=colour, ms=6)
    return losses


def _draw_difference(
    axes: Axes, standing: Standing, contest: Contest, height: int, colour: str
) -> float:
    """Draw a difference, without an interval as a hollow point; returns the difference."""
    if interval := standing.difference:
        axes.plot([interval.low, interval.high], [height, height], color=colour, linewidth=2)
        axes.plot(interval.mean, height, "o", color=colour, ms=6)
        return interval.mean
    own, base = standing.variant.loss, contest.baseline.loss
    if not (own and base) or standing.variant is contest.baseline:
        return 0.0
    axes.plot(own.mean - base.mean, height, "o", mfc="none", mec=colour, ms=6)
    return own.mean - base.mean


def curves(contests: Sequence[Contest], words: Translate = str) -> Figure:
    """Validation loss by epoch: mean and 95 % band over seeds, a panel for each corpus.

    Bands end with the shortest run of a variant. References are level lines where all variants of a
    corpus share them.

    Args:
        contests: with at least one curve.
        words: translates labels.
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
        _set_view(axes, [s.variant for s in drawn])
        reference_lines(axes, contest.references)
        epoch_axis(axes, words("epoch"))
        axes.set_ylabel(words("validation loss (nats per token)"))
        axes.set_title(contest.corpus, loc="left", fontsize=10)
        plain(axes)
        below = {"loc": "upper left", "bbox_to_anchor": (0, -0.12), "ncols": 3}
        axes.legend(lines, map(_in_lines, names), **below, fontsize=8, frameon=False)
    return figure


def has_curves(contest: Contest) -> bool:
    """Whether any variant has a curve."""
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


def _set_view(axes: Axes, drawn: Sequence[Variant]) -> None:
    """From just below the lowest loss to the highest after the start of the training."""
    losses: list[float] = []
    late: list[float] = []
    for variant in drawn:
        rows = variant.curve("epoch")
        first = START * len(rows) if len(rows) >= SHORT else 0
        for number, (_, values) in enumerate(rows, 1):
            finite = [loss for loss in values if math.isfinite(loss)]
            losses += finite
            late += finite if number >= first else []
    if losses:
        low, high = min(losses), max(late or losses)
        margin = 0.08 * (high - low) or 0.05
        axes.set_ylim(low - 2 * margin, high + margin)
