"""The figures of recall: accuracy by number of pairs, and bits recalled by bits of state.

Shape suffixes: M models, P numbers of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, NullFormatter

from newllm.reporting.drawing import Figure, plain
from newllm.reporting.formatting import percent_at_least
from newllm.reporting.models import MODELS
from newllm.studies.recall.results import BITS_OF_NUMBER, PARTS, Contestant

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
        axes.text(column, row, percent_at_least(mean), ha="center", va="center", color=colour,
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
    """Bits recalled by bits of state, both logarithmic, with the bound; a panel for each part.

    Args:
        found: all contestants.
        published: bits recalled for each number of the state, drawn as a line.
        words: for titles, axes and legend: the models, the parts, `bits`, `recalled`, `bound`,
            `row` and `published`.
    """
    parts = [part for part in PARTS if any(one.part == part for one in found)]
    figure = Figure(figsize=(5 * len(parts), 4.6), layout="constrained")
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        own = [one for one in found if one.part == part]
        states = [one.state_bits for one in own]
        ends = np.array([min(states) / 2, max(states) * 2])
        axes.plot(ends, ends, color="black", label=words["bound"])
        axes.axhline(own[0].bits_of_row, color="black", linestyle="--", label=words["row"])
        density = published / BITS_OF_NUMBER
        axes.plot(ends, ends * density, color="black", linestyle=":", label=words["published"])
        for model in MODELS:
            if sizes := [one for one in own if one.model == model]:
                _draw_model(axes, sizes, words[model])
        axes.set(xscale="log", yscale="log", title=words[part], xlabel=words["bits"])
        axes.set_ylim(bottom=1)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_minor_formatter(NullFormatter())
        plain(axes)
    figure.axes[0].set_ylabel(words["recalled"])
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside lower center",
                  ncols=2 * len(parts), frameon=False, fontsize=8)  # fmt: skip
    return figure


def _draw_model(axes: Axes, found: Sequence[Contestant], label: str) -> None:
    """A point for each run of a model, and a line through the means of its sizes."""
    model = MODELS[found[0].model]
    marker = "^" if model.grows else "o"
    states = [one.state_bits for one in found]
    for one in found:
        axes.plot([one.state_bits] * len(one.runs), one.bits_of_runs, marker, color=model.colour,
                  markersize=4, alpha=0.5)  # fmt: skip
    means = [one.bits_recalled.mean for one in found]
    axes.plot(states, means, marker=marker, color=model.colour, linewidth=1, label=label)
