"""Figures of the series and its reproduction. Each function returns a matplotlib Figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from newllm.analysis.figures import BLUE, GREEN, GREY, ORANGE, plain
from newllm.analysis.gathering import Run
from newllm.analysis.series import Summary, published

CORPORA = ("tiny30", "augmented124", "quality500")
KIND_COLOURS = {"unk": ORANGE, "eos": GREEN, "other": BLUE}


def overview(summaries: Sequence[Summary], reported: str, ours: str, label: str) -> Figure:
    """Reported and reproduced best losses in the series' order, a panel for each corpus.

    Args:
        summaries: all experiments.
        reported: what a reported loss is called.
        ours: what a reproduced one is called.
        label: of the horizontal axis.
    """
    groups = {
        corpus: [summary for summary in summaries if _corpus(summary) == corpus]
        for corpus in CORPORA
    }
    groups = {corpus: group for corpus, group in groups.items() if group}
    figure = Figure(figsize=(9, 1.6 + 0.21 * len(summaries)), layout="constrained")
    panels = figure.subplots(
        len(groups), 1, squeeze=False, height_ratios=[len(group) + 1 for group in groups.values()]
    )[:, 0]
    for axes, (corpus, group) in zip(panels, groups.items(), strict=True):
        for height, summary in enumerate(group):
            if summary.reported is not None:
                axes.plot(summary.reported, height, "D", mfc="none", mec=ORANGE, ms=6)
            if summary.losses:
                axes.plot(summary.losses, [height] * len(summary.losses), "|", color=BLUE, ms=7)
            if summary.loss is not None:
                axes.plot(summary.loss.mean, height, "o", color=BLUE, ms=4)
        axes.set_yticks(range(len(group)), [summary.name for summary in group], fontsize=7)
        axes.set_ylim(len(group) - 0.5, -0.5)
        axes.set_title(corpus, loc="left", fontsize=9)
        axes.margins(x=0.08)
        plain(axes)
    first = panels[0]
    first.plot([], [], "D", mfc="none", mec=ORANGE, ms=6, label=reported)
    first.plot([], [], "o", color=BLUE, ms=4, label=ours)
    first.legend(frameon=False, fontsize=8)
    panels[-1].set_xlabel(label, fontsize=9)
    return figure


def _corpus(summary: Summary) -> str:
    if "augmentation" in summary.name:
        return "augmented124"
    return "quality500" if "final" in summary.name else "tiny30"


def curve_grid(
    summaries: Sequence[Summary], train: str, validation: str, epoch: str, loss_label: str
) -> Figure:
    """All loss curves by epoch on common axes; unigram, bigram and oracle of the same split."""
    columns = 5
    rows = math.ceil(len(summaries) / columns)
    figure = Figure(figsize=(13, 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, summary in zip(panels, summaries, strict=False):
        for run in summary.done:
            epochs = [row["epoch"] for row in run.epochs]
            for key, colour in (("train/loss", GREY), ("val/loss_batch_mean", BLUE)):
                losses = [row.get(key, math.nan) for row in run.epochs]
                axes.plot(epochs, losses, color=colour, linewidth=0.7, alpha=0.8)
        if summary.reported is not None:
            axes.axhline(summary.reported, color=ORANGE, linewidth=0.8)
        for name, loss in (summary.done[0].result["references"] if summary.done else {}).items():
            style = "-" if name == "oracle" else ":"
            axes.axhline(loss, color=GREEN, linewidth=0.6, linestyle=style)
        axes.set_title(summary.name.replace("phase", "p"), fontsize=7)
        axes.tick_params(labelsize=7)
        plain(axes)
    for axes in panels[len(summaries) :]:
        axes.set_visible(False)
    figure.supxlabel(epoch, fontsize=9)
    figure.supylabel(loss_label, fontsize=9)
    panels[0].set_ylim(1.3, 9)
    panels[0].set_xscale("log")
    panels[0].set_xlim(1, 150)
    for colour, label in ((GREY, train), (BLUE, validation)):
        panels[0].plot([], [], color=colour, label=label)
    panels[0].legend(frameon=False, fontsize=7)
    return figure


def spikes(
    summaries: Sequence[Summary], label: str, epoch: str, step: str, kinds: dict[str, str]
) -> Figure:
    """The published spikes by epoch beside ours, above; by step and kind of target, below.

    Args:
        summaries: all experiments.
        label: of the vertical axes.
        epoch: of the horizontal axes above.
        step: of those below.
        kinds: what the kinds of targets are called.
    """
    by_name = {summary.name: summary for summary in summaries}
    curves = published()["curve"]
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    panels = figure.subplots(2, len(curves), squeeze=False)
    for column, curve in enumerate(curves):
        above, below = panels[:, column]
        summary = by_name[curve["name"]]
        style = "D-" if len(curve["epochs"]) > 2 else "D"
        above.plot(curve["epochs"], curve["losses"], style, color=ORANGE, mfc="none", ms=5)
        for run in summary.done:
            losses = [row.get("val/loss_batch_mean", math.nan) for row in run.epochs]
            above.plot([row["epoch"] for row in run.epochs], losses, color=BLUE, linewidth=0.8)
        above.set_title(curve["name"], fontsize=9)
        above.set_ylabel(label)
        above.set_xlabel(epoch)
        plain(above)
        if summary.done:
            _contributions(below, summary.done, kinds)
        below.set_ylabel(label)
        below.set_xlabel(step)
        below.set_title(curve["name"], fontsize=9)
        plain(below)
    return figure


def _contributions(axes: Axes, runs: Sequence[Run], kinds: dict[str, str]) -> None:
    """Mean over runs of what each kind of target contributes to the validation loss, by step."""
    length = min(len(run.looks) for run in runs)
    if not length:
        return
    steps = [row["step"] for row in runs[0].looks[:length]]
    heights = [
        np.mean([[row[kind] for row in run.looks[:length]] for run in runs], axis=0)
        for kind in kinds
    ]
    colours = [KIND_COLOURS[kind] for kind in kinds]
    axes.stackplot(steps, heights, labels=list(kinds.values()), colors=colours, alpha=0.8)
    axes.legend(frameon=False, fontsize=8)
