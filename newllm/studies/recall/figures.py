"""The figures of recall: accuracy by number of pairs, and bits recalled by bits of state.

Shape suffixes: M models, P numbers of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

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
    log_ticks,
    plain,
)
from newllm.studies.recall.results import ATTENTION, BITS_OF_NUMBER, MODELS, Contestant

COLOURS = {
    "gated": ORANGE,
    "additive": YELLOW,
    "transformer": BLUE,
    "rotary": SKY,
    "positionless": GREY,
    "lstm": GREEN,
    "gru": PINK,
    "mingru": BLACK,
}
LIGHT = 0.6  # an accuracy whose cell is too light for white digits


def accuracy(found: Sequence[Contestant], words: Mapping[str, str]) -> Figure:
    """A heat map of models x numbers of pairs; a line separates those beyond training.

    Args:
        found: contestants with the same numbers of pairs.
        words: for axes and bar: the models, `pairs` and `accuracy`.
    """
    pairs, longest = found[0].numbers_of_pairs, found[0].longest_in_training
    mean_MP = np.array([[one.mean("accuracy", number).mean for number in pairs] for one in found])
    figure = Figure(figsize=(7.5, 1.2 + 0.4 * len(found)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(mean_MP, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    for (row, column), mean in np.ndenumerate(mean_MP):
        colour = "black" if mean > LIGHT else "white"
        axes.text(column, row, f"{100 * mean:.1f}", ha="center", va="center", color=colour,
                  fontsize=8)  # fmt: skip
    axes.set_xticks(range(len(pairs)), [str(number) for number in pairs])
    axes.set_yticks(range(len(found)), [_label(one, words) for one in found], fontsize=8)
    axes.axvline(sum(number <= longest for number in pairs) - 0.5, color="white", linewidth=2)
    axes.set_xlabel(words["pairs"])
    figure.colorbar(image, ax=axes, label=words["accuracy"])
    return figure


def _label(one: Contestant, words: Mapping[str, str]) -> str:
    size = f", {one.state_bits // BITS_OF_NUMBER}" if one.part == "state" else ""
    return words[one.model] + size


def recalled(found: Sequence[Contestant], published: float, words: Mapping[str, str]) -> Figure:
    """Bits recalled by bits of state, both logarithmic, with the bound.

    Args:
        found: all contestants; those that recall nothing are left out.
        published: bits recalled for each number of the state, drawn as a line.
        words: for axes and legend: the models, `state`, `recalled`, `bound` and `published`.
    """
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    shown = [one for one in found if one.bits_recalled.mean > 0]
    states = [one.state_bits for one in shown] or [BITS_OF_NUMBER]
    ends = np.array([min(states) / 2, max(states) * 2])
    axes.plot(ends, ends, color="black", label=words["bound"])
    density = published / BITS_OF_NUMBER
    axes.plot(ends, ends * density, color="black", linestyle=":", label=words["published"])
    for model in MODELS:
        if own := sorted((o for o in shown if o.model == model), key=lambda one: one.state_bits):
            _draw_model(axes, own, words[model])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    log_ticks(axes.yaxis)
    axes.set_xlabel(words["state"])
    axes.set_ylabel(words["recalled"])
    plain(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _draw_model(axes: Axes, found: Sequence[Contestant], label: str) -> None:
    """The contestants of one model, from the smallest state to the largest."""
    bits = [one.bits_recalled for one in found]
    axes.errorbar(
        [one.state_bits for one in found],
        [interval.mean for interval in bits],
        yerr=[interval.half_width if interval.num_runs > 1 else 0 for interval in bits],
        fmt="^" if found[0].model in ATTENTION else "o-",
        color=COLOURS[found[0].model],
        markersize=5,
        linewidth=1,
        label=label,
    )
