"""The figure of the fair comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from newllm.analysis.fair import MODELS, SIZES, Contestant

# Okabe & Ito (2008).
COLOURS = {
    "context": "#D55E00",
    "transformer": "#0072B2",
    "lstm": "#009E73",
    "gru": "#CC79A7",
    "elman": "#7F7F7F",
    "mingru": "#E69F00",
}
MARKERS = {"200k": "o", "700k": "s", "state": "^"}


def fair(found: Sequence[Contestant], words: Mapping[str, str]) -> Figure:
    """What a search of so many trials finds on average, by size; test gaps by size of the state.

    Args:
        found: all contestants.
        words: for titles and axes: the sizes, `trials`, `best`, `bytes`, `gap`, and the models.
    """
    sizes = [size for size in SIZES if any(one.size == size for one in found)]
    figure = Figure(figsize=(3.6 * (len(sizes) + 1), 3.8), layout="constrained")
    *panels, last = figure.subplots(1, len(sizes) + 1)
    for axes, size in zip(panels, sizes, strict=True):
        for contestant in found:
            if contestant.size == size:
                oracle = contestant.chosen.result["oracle_loss"]
                curve = [loss - oracle for loss in contestant.expected_best]
                axes.plot(
                    range(1, len(curve) + 1),
                    curve,
                    color=COLOURS[contestant.model],
                    linewidth=2 if contestant.model == "context" else 1.2,
                )
        axes.set_title(words[size], fontsize=9)
        axes.set_xlabel(words["trials"])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.sharey(panels[0])
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if panels:
        panels[0].set_ylabel(words["best"])
    for contestant in found:
        if gap := contestant.gap("seeds"):
            last.errorbar(
                contestant.chosen.result["state_bytes"],
                gap.mean,
                yerr=gap.half_width if gap.num_runs > 1 else 0,
                fmt=MARKERS[contestant.size],
                color=COLOURS[contestant.model],
                markersize=5,
            )
    last.set_xscale("log", base=2)
    last.xaxis.set_major_formatter("{x:g}")
    last.set_xlabel(words["bytes"])
    last.set_ylabel(words["gap"])
    for model in MODELS:
        if any(contestant.model == model for contestant in found):
            last.plot([], [], color=COLOURS[model], label=words[model])
    for size in sizes:
        last.plot([], [], MARKERS[size], color="black", markersize=5, label=words[size])
    figure.legend(*last.get_legend_handles_labels(), loc="outside lower center", ncols=9,
                  frameon=False, fontsize=8)  # fmt: skip
    for axes in (*panels, last):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
