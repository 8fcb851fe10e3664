"""Figures of the series and its reproduction. Each function returns a matplotlib Figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from newllm.reporting.drawing import BLUE, GREEN, GREY, ORANGE, Figure, plain
from newllm.reporting.figures import series
from newllm.runs.gathering import Run
from newllm.studies.series.results import Summary, published

CORPORA = ("tiny30", "augmented124", "quality500")
KIND_COLOURS = {"unk": ORANGE, "eos": GREEN, "other": BLUE}


def overview(
    summaries: Sequence[Summary], reported: str, each: str, mean: str, label: str
) -> Figure:
    """Reported and reproduced best losses in the series' order, a panel for each corpus.

    Args:
        summaries: all experiments.
        reported: what a reported loss is called.
        each: what the reproduced one of a seed is called.
        mean: what the mean over seeds is called.
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
    first.plot([], [], "|", color=BLUE, ms=7, label=each)
    first.plot([], [], "o", color=BLUE, ms=4, label=mean)
    first.legend(frameon=False, fontsize=8)
    panels[-1].set_xlabel(label, fontsize=9)
    return figure


def _corpus(summary: Summary) -> str:
    if "augmentation" in summary.name:
        return "augmented124"
    return "quality500" if "final" in summary.name else "tiny30"


def curve_grid(summaries: Sequence[Summary], words: Mapping[str, str]) -> Figure:
    """All loss curves by epoch on common axes, beside the references of the same split.

    Args:
        summaries: all experiments.
        words: for axes and legend: `epoch`, `loss`, `train`, `validation`, `reported`, `counts`
            and `oracle`.
    """
    columns = 5
    rows = math.ceil(len(summaries) / columns)
    figure = Figure(figsize=(13, 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, summary in zip(panels, summaries, strict=False):
        for run in summary.done:
            for key, colour in (("train/loss", GREY), ("val/loss_batch_mean", BLUE)):
                axes.plot(*series(run.epochs, key), color=colour, linewidth=0.7, alpha=0.8)
        if summary.reported is not None:
            axes.axhline(summary.reported, color=ORANGE, linewidth=0.8)
        references = summary.done[0].result["references"] if summary.done else {}
        for name, style in (("unigram", ":"), ("bigram", ":"), ("oracle", "-")):
            if name in references:
                axes.axhline(references[name], color=GREEN, linewidth=0.6, linestyle=style)
        axes.set_title(summary.name.replace("phase", "p"), fontsize=7)
        axes.tick_params(labelsize=7)
        plain(axes)
    for axes in panels[len(summaries) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(summaries) - columns) : len(summaries)]:
        axes.tick_params(labelbottom=True)  # the lowest of each column
    figure.supxlabel(words["epoch"], fontsize=9)
    figure.supylabel(words["loss"], fontsize=9)
    panels[0].set_ylim(1.3, 9)
    panels[0].set_xscale("log")
    panels[0].set_xlim(1, 150)
    lines = {"train": (GREY, "-"), "validation": (BLUE, "-"), "reported": (ORANGE, "-"),
             "counts": (GREEN, ":"), "oracle": (GREEN, "-")}  # fmt: skip
    for name, (colour, style) in lines.items():
        panels[0].plot([], [], style, color=colour, label=words[name])
    figure.legend(loc="outside upper center", ncols=len(lines), frameon=False, fontsize=9)
    return figure


def spikes(summaries: Sequence[Summary], words: Mapping[str, str], kinds: dict[str, str]) -> Figure:
    """The published spikes by epoch beside ours, above; by step and kind of target, below.

    Args:
        summaries: all experiments.
        words: for axes and legend: `epoch`, `step`, `loss`, `published` and `each`.
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
            points = series(run.epochs, "val/loss_batch_mean")
            above.plot(*points, color=BLUE, linewidth=0.8)
        above.set_title(curve["name"], fontsize=9)
        above.set_ylabel(words["loss"])
        above.set_xlabel(words["epoch"])
        plain(above)
        if summary.done:
            _contributions(below, summary.done, kinds)
        below.set_ylabel(words["loss"])
        below.set_xlabel(words["step"])
        below.set_title(curve["name"], fontsize=9)
        plain(below)
    first = panels[0, 0]
    first.plot([], [], "D-", color=ORANGE, mfc="none", ms=5, label=words["published"])
    first.plot([], [], color=BLUE, linewidth=0.8, label=words["each"])
    first.legend(frameon=False, fontsize=8)
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
    axes.legend(framealpha=0.9, fontsize=8)
