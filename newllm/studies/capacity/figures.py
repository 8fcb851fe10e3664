"""The figure of capacity: losses by bits of the context, beside the floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from newllm.reporting.drawing import BLACK, BLUE, GREY, ORANGE, Figure, plain
from newllm.studies.capacity.results import Capacity

MOST_COLUMNS = 3


def capacity(found: Sequence[Capacity], words: Mapping[str, str]) -> Figure:
    """A panel for each source.

    Args:
        found: the sources.
        words: for titles, axes and legend: the sources, `bits`, `loss`, `floor`, `windows`,
            `measured` and `predicted`.
    """
    columns = min(MOST_COLUMNS, len(found))
    num_rows = -(-len(found) // columns)
    figure = Figure(figsize=(3.9 * columns, 0.6 + 2.9 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, columns, squeeze=False).ravel()
    for axes, one in zip(panels, found, strict=False):
        _draw(axes, one, words)
        axes.set_title(words[one.source], fontsize=9)
        axes.set_xlabel(words["bits"])
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    for axes in panels[::columns]:
        axes.set_ylabel(words["loss"])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False, fontsize=8)  # fmt: skip
    return figure


def _draw(axes: Axes, one: Capacity, words: Mapping[str, str]) -> None:
    """Floor, windows as ticks on the right, means, and the predicted smallest context."""
    means = one.means
    bits = np.linspace(0, max(means), 200)
    axes.plot(bits, [one.floor(each) for each in bits], color=BLACK, label=words["floor"])
    axes.fill_between(bits, [one.floor(each) for each in bits], 0, color=GREY, alpha=0.15)
    highest = max([one.window_losses[0], *(mean.mean for mean in means.values())])
    span = highest - one.oracle
    lowest = one.oracle - 0.1 * span  # windows below say more than rows of this length can use
    for k, loss in enumerate(one.window_losses, start=1):
        axes.axhline(loss, 0.96, 1, color=BLUE, linewidth=1,
                     label=words["windows"] if k == 1 else None)  # fmt: skip
        is_apart = k == 1 or one.window_losses[k - 2] - loss > 0.06 * span
        if is_apart and loss > lowest:
            axes.annotate(str(k), (1.01, loss), xycoords=axes.get_yaxis_transform(),
                          color=BLUE, fontsize=7, va="center")  # fmt: skip
    axes.errorbar(
        list(means),
        [mean.mean for mean in means.values()],
        yerr=[mean.half_width if mean.num_runs > 1 else 0 for mean in means.values()],
        fmt="o",
        color=ORANGE,
        markersize=4,
        label=words["measured"],
    )
    axes.axvline(one.predicted, color=GREY, linestyle=":", label=words["predicted"])
    axes.set_ylim(lowest, highest + 0.1 * span)
    plain(axes)
