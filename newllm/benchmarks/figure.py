"""The figure of a benchmark."""

from collections.abc import Mapping

from newllm.benchmarks.timing import Timing
from newllm.reporting.drawing import BLUE, GREY, Figure


def speed(rows: Mapping[str, Timing]) -> Figure:
    """Ratios of a benchmark, a panel for each kind of row (the first word of its name)."""
    kinds = list(dict.fromkeys(name.partition(" ")[0] for name in rows))
    figure = Figure(figsize=(11, 1.2 + 0.22 * len(rows)), layout="constrained")
    heights = [sum(name.startswith(f"{kind} ") for name in rows) + 1 for kind in kinds]
    panels = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, kind in zip(panels, kinds, strict=True):
        own = {name: row.ratio for name, row in rows.items() if name.startswith(f"{kind} ")}
        labels = [name.removeprefix(f"{kind} ") for name in own]
        bars = axes.barh(labels, list(own.values()), color=BLUE)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=7)
        axes.axvline(1, color=GREY, linewidth=1)
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
        axes.margins(x=0.1)
        axes.set_title(kind, loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("ratio to the first row of each group (roofline: share reached)", fontsize=8)
    return figure
