"""The figure of the fair comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from newllm.reporting.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    YELLOW,
    Figure,
    log_ticks,
    plain,
)
from newllm.studies.fair.results import MODELS, SIZES, Contestant

COLOURS = {
    "context": ORANGE,
    "transformer": BLUE,
    "lstm": GREEN,
    "gru": PINK,
    "elman": GREY,
    "mingru": YELLOW,
}
MARKERS = {"200k": "o", "700k": "s", "state": "^"}


def fair(found: Sequence[Contestant], words: Mapping[str, str]) -> Figure:
    """Expected best loss by number of trials, for each size; test gaps by size of the state.

    Args:
        found: all contestants.
        words: for titles and axes: the sizes, `trials`, `best`, `bytes`, `gap`,
            `interval`, and the models.
    """
    sizes = [size for size in SIZES if any(one.size == size for one in found)]
    figure = Figure(figsize=(3.9 * (len(sizes) + 1), 3.9), layout="constrained")
    *panels, last = figure.subplots(1, len(sizes) + 1)
    for axes, size in zip(panels, sizes, strict=True):
        if axes is not panels[0]:  # before anything is drawn, so that all fits
            axes.sharey(panels[0])
        _draw_search(axes, [contestant for contestant in found if contestant.size == size])
        axes.set_title(words[size], fontsize=9)
        axes.set_xlabel(words["trials"])
    panels[0].set_ylabel(words["best"])
    _draw_gaps(last, found)
    last.set_xlabel(words["bytes"])
    last.set_ylabel(words["gap"])
    for model in MODELS:
        if any(contestant.model == model for contestant in found):
            last.plot([], [], color=COLOURS[model], label=words[model])
    for size in sizes:
        last.plot([], [], MARKERS[size], color="black", markersize=5, label=words[size])
    last.plot([], [], "|", color="black", markersize=9, label=words["interval"])
    figure.legend(*last.get_legend_handles_labels(), loc="outside lower center", ncols=5,
                  frameon=False, fontsize=8)  # fmt: skip
    return figure


def _draw_search(axes: Axes, found: Sequence[Contestant]) -> None:
    """The expected best validation loss above the grammar's, by number of trials."""
    for contestant in found:
        oracle = contestant.chosen.result["oracle_loss"]
        curve = [loss - oracle for loss in contestant.expected_best]
        width = 2 if contestant.model == "context" else 1.2
        colour = COLOURS[contestant.model]
        axes.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=width)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yscale("log")
    log_ticks(axes.yaxis, subs=(1, 1.5, 2, 3, 5))
    plain(axes)


def _draw_gaps(axes: Axes, found: Sequence[Contestant]) -> None:
    """Test losses above the grammar's, by size of the state."""
    for contestant in found:
        if gap := contestant.gap("seeds"):
            axes.errorbar(
                contestant.chosen.result["state_bytes"],
                gap.mean,
                yerr=gap.half_width if gap.num_runs > 1 else 0,
                fmt=MARKERS[contestant.size],
                color=COLOURS[contestant.model],
                markersize=5,
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    plain(axes)
