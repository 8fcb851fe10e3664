"""The figure of scaling: measured gaps beside the law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, NullFormatter

from newllm.reporting.drawing import Figure, log_ticks, plain
from newllm.studies.scaling.law import Fit, Point


def scaling(measured: Sequence[Point], found: Fit | None, words: Mapping[str, str]) -> Figure:
    """Gaps by sentences (a line for each number of parameters), by parameters and by context.

    In each panel the sizes that it does not show are the largest of the grid, but for the colour.

    Args:
        measured: all points; those beyond the grid are drawn as rings.
        found: the law, drawn as lines, if there is one.
        words: for axes and legend: `gap`, `sentences`, `parameters`, `context`, `measured`, `law`
            and `largest`.
    """
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (across, colour) in zip(
        panels,
        (("sentences", "parameters"), ("parameters", "sentences"), ("context", "sentences")),
        strict=True,
    ):
        _panel(axes, measured, found, across, colour, words)
        axes.set_xlabel(words[across])
    panels[0].set_ylabel(words["gap"])
    marks = {"measured": Line2D([], [], color="black", linestyle="", marker="o", markersize=4)}
    if found:
        marks["law"] = Line2D([], [], color="black", linewidth=1)
    if any(point.is_largest for point in measured):
        marks["largest"] = Line2D([], [], color="black", linestyle="", marker="o", mfc="none")
    labels = [words[name] for name in marks]
    figure.legend(list(marks.values()), labels, loc="outside lower center", ncols=len(marks),
                  frameon=False, fontsize=8)  # fmt: skip
    return figure


def _panel(
    axes: Axes,
    measured: Sequence[Point],
    found: Fit | None,
    across: str,
    colour: str,
    words: Mapping[str, str],
) -> None:
    grid = [point for point in measured if not point.is_largest]
    fixed = ({"sentences", "parameters", "context"} - {across, colour}).pop()
    values = sorted({_level(point, fixed) for point in grid})
    shown = [point for point in measured if _level(point, fixed) in values[-1:]]
    levels = sorted({_level(point, colour) for point in shown})
    for level, shade in zip(levels, np.linspace(0.1, 0.85, len(levels)), strict=True):
        line = [point for point in shown if _level(point, colour) == level]
        tint = matplotlib.colormaps["viridis"](shade)
        for is_largest in (False, True):
            some = [point for point in line if point.is_largest == is_largest]
            axes.plot(
                [getattr(point, across) for point in some],
                [point.gap for point in some],
                "o",
                color=tint,
                markersize=4 + 3 * is_largest,
                mfc="none" if is_largest else tint,
            )
        axes.plot([], [], "o-" if found else "o", color=tint, markersize=4, label=f"{level:,}")
        if found:
            line.sort(key=lambda point: int(getattr(point, across)))
            sizes = [getattr(point, across) for point in line]
            axes.plot(sizes, [found.law.gap(point) for point in line], color=tint, linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({_level(point, across) for point in shown})
    axes.set_xticks(ticks, [EngFormatter(sep="")(tick) for tick in ticks], fontsize=8)
    axes.xaxis.set_minor_formatter(NullFormatter())
    log_ticks(axes.yaxis)
    axes.legend(title=words[colour], loc="upper right", ncols=2, frameon=False,
                fontsize=7, title_fontsize=7)  # fmt: skip
    plain(axes)


def _level(point: Point, name: str) -> int:
    """A size of a point; parameters to two digits."""
    return point.model[0] if name == "parameters" else int(getattr(point, name))
