"""The figure of streams: the loss by distance to the start of a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from newllm.reporting.drawing import GREY, Figure, log_ticks, plain
from newllm.reporting.models import MODELS
from newllm.studies.streams.results import Contestant

DASHES = {"kept": "-", "zero": "--", "drawn": ":"}
NUM_HIDDEN = 8  # of the first bins, which hold a single position each and scatter


def loss_by_distance(found: Sequence[Contestant], words: Mapping[str, str]) -> Figure:
    """The mean loss minus that of the reference by distance, on a logarithmic axis.

    Args:
        found: all contestants.
        words: for axes and legend: the models and states, `distance`, `excess` and `window`.
    """
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    for one in found:
        axes.plot(
            one.places_K[NUM_HIDDEN:],
            one.excess_RK.mean(0)[NUM_HIDDEN:],
            DASHES[one.state],
            color=MODELS[one.model].colour,
            label=f"{words[one.model]}: {words[one.state]}",
        )
    axes.axvline(found[0].window, color=GREY, linewidth=1)
    axes.annotate(
        words["window"],
        (found[0].window, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -4),
        textcoords="offset points",
        va="top",
        fontsize=8,
        color=GREY,
    )
    axes.set_xscale("log")
    log_ticks(axes.xaxis)
    axes.set_xlabel(words["distance"])
    axes.set_ylabel(words["excess"])
    plain(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure
