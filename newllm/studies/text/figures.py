"""The figure of real text: bits per byte by training time, beside the references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from newllm.reporting.drawing import GREY, Figure, plain
from newllm.reporting.models import MODELS
from newllm.studies.text.results import Contestant, references

MARKERS = {"tokens": "o", "time": "D"}


def bits_by_time(found: Sequence[Contestant], words: Mapping[str, str]) -> Figure:
    """Each run by its time and its bits per byte, the means of a model joined by a line.

    Args:
        found: all contestants.
        words: for axes and legend: the parts and models, `minutes`, `bits` and `xz`.
    """
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for model in dict.fromkeys(one.model for one in found):
        own = [one for one in found if one.model == model]
        colour = MODELS[model].colour
        means = [(one.minutes.mean, one.bits.mean) for one in own]
        axes.plot(*zip(*means, strict=True) if means else ((), ()), color=colour, linewidth=1)
        for one in own:
            axes.plot([seconds / 60 for seconds in one.seconds_of_runs], one.bits_of_runs,
                      MARKERS[one.part], color=colour, markersize=6, alpha=0.7,
                      label=f"{words[model]}, {words[one.part]}")  # fmt: skip
    if (xz := references(found).get("xz")) is not None:
        axes.axhline(xz, color=GREY, linestyle="--", label=words["xz"])
    axes.set_xlim(left=0)
    axes.set_xlabel(words["minutes"])
    axes.set_ylabel(words["bits"])
    plain(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure
