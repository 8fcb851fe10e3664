"""Figures of one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from newllm.reporting.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    Figure,
    epoch_axis,
    log_ticks,
    plain,
    shortened,
)

CLOSE = 0.045  # of the height of the axes: closer lines share a label
MANY_POSITIONS = 48  # more are drawn as means over neighbours
FEW_DECADES = 1e3  # range of a logarithmic axis with room for labels between the powers of ten
MANY_WORDS = 40  # more do not fit side by side


def run_title(name: str, data: Mapping[str, Any], seed: object) -> str:
    """The title of a figure of one run: its name, corpus or file, and seed."""
    given = data.get("corpus") or data.get("name") or data.get("path")
    corpus = Path(str(given)).name if given else str(data["_target_"]).rpartition(".")[2]
    return f"{name}, {corpus}, seed {seed}"


def series(rows: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of the rows that have a value."""
    pairs = [(row["epoch"], row[key]) for row in rows if key in row]
    return np.array([epoch for epoch, _ in pairs]), np.array([value for _, value in pairs], float)


def curves(
    rows: Sequence[Mapping[str, Any]], references: Mapping[str, float], title: str
) -> Figure:
    """Loss and perplexity by epoch, train and validation, references as horizontal lines.

    Args:
        rows: of `metrics.csv`, with `epoch`, `train/loss` and `val/loss`, in nats per token; each
            loss may be missing.
        references: losses on the validation split by name, in nats per token.
        title: of the run.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss_axes, perplexity_axes = figure.subplots(1, 2)
    for key, label, colour in (("train/loss", "train", BLUE), ("val/loss", "validation", ORANGE)):
        epochs, losses = series(rows, key)
        marker = "o" if len(losses) < 3 else None
        loss_axes.plot(epochs, losses, color=colour, label=label, marker=marker)
        with np.errstate(over="ignore"):  # of a run that diverges
            perplexities = np.exp(losses)
        perplexity_axes.plot(epochs, perplexities, color=colour, label=label, marker=marker)
    loss_axes.set_ylabel("loss (nats per token)")
    perplexity_axes.set_ylabel("perplexity")
    perplexity_axes.set_yscale("log")
    log_ticks(perplexity_axes.yaxis)
    for axes, transform in ((loss_axes, float), (perplexity_axes, math.exp)):
        reference_lines(axes, references, transform)
        epoch_axis(axes)
        plain(axes)
    loss_axes.legend(frameon=False)
    figure.headline(title)
    return figure


def reference_lines(
    axes: Axes, references: Mapping[str, float], transform: Callable[[float], float] = float
) -> None:
    """Horizontal lines with their names to the right of the axes, after all curves are drawn.

    Where the limits of the axes are set, lines outside of them have no name.
    """
    ordered = sorted(references.items(), key=lambda pair: -pair[1])
    for name, loss in ordered:
        style, colour = ("-", GREEN) if name == "oracle" else ("--", GREY)
        axes.axhline(transform(loss), color=colour, linestyle=style, linewidth=1, zorder=1)
    axes.autoscale_view()
    to_height = axes.transScale + axes.transLimits
    shared: dict[float, list[str]] = {}  # names by the height of the first of them
    height = math.inf
    for name, loss in ordered:
        own = float(to_height.transform((1, transform(loss)))[1])
        if not 0 <= own <= 1:
            continue
        if height - own > CLOSE:
            height = own
        shared.setdefault(height, []).append(name)
    for height, names in shared.items():
        axes.annotate(
            ", ".join(names).replace("_", " "),
            (1, height),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=GREEN if "oracle" in names else GREY,
        )


def positions(
    losses: Sequence[float],
    divergences: Sequence[float] | None,
    references: Mapping[str, Sequence[float]],
    title: str,
    numbers: Sequence[int] | None = None,
    unit: str = "words",
    places: Sequence[float] | None = None,
) -> Figure:
    """Validation loss at each position of a sentence beside the references; KL from the grammar.

    Of many positions, means over neighbours are drawn, over more of them farther from the start,
    since few sentences reach the late positions.

    Args:
        losses: of the run at the 1st, 2nd, ... position, in nats.
        divergences: from the grammar's exact distribution, in nats; None where there is none.
        references: losses by position of each reference, by name.
        title: of the run.
        numbers: of targets at each position, the weights of the means; None for equal numbers.
        unit: of a position: `words` or `tokens`.
        places: the mean position of each bin, if the losses are those of bins of positions.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 1 if divergences is None else 2, squeeze=False)[0]
    edges = _bins(len(losses))
    weights = np.ones(len(losses)) if numbers is None else np.array(numbers, float)
    binned = len(edges) <= len(losses) or places is not None
    middles = np.arange(1, len(losses) + 1) if places is None else places
    place_of_bin = _means(middles, weights, edges)
    styles = {"oracle": (GREEN, "-"), "grammar_known": (GREEN, "--")}
    greys = iter((":", "-.", "--", (0, (1, 3))))
    for name, reference in references.items():
        colour, style = styles.get(name) or (GREY, next(greys))
        label = name.replace("_", " ")
        means = _means(reference, weights, edges)
        panels[0].plot(place_of_bin, means, color=colour, linestyle=style, linewidth=1, label=label)
    own = {"color": ORANGE, "marker": "o", "markersize": 3}
    panels[0].plot(place_of_bin, _means(losses, weights, edges), **own, label="this run")
    panels[0].set_ylabel("validation loss (nats)")
    panels[0].legend(fontsize=7, ncols=2, framealpha=0.9)
    if divergences is not None:
        panels[1].plot(place_of_bin, _means(divergences, weights, edges), **own)
        panels[1].set_ylabel("KL from the grammar (nats)")
        panels[1].set_ylim(bottom=0)
    for axes in panels:
        what = f"{unit}; means over neighbours" if binned else unit
        epoch_axis(axes, f"position in the sentence ({what})")
        if binned:
            axes.set_xscale("log")
            log_ticks(axes.xaxis)
        plain(axes)
    figure.headline(title)
    return figure


def _bins(number: int) -> np.ndarray:
    """The first position of each bin, from 0, and the end; bins of one if there are few."""
    if number <= MANY_POSITIONS:
        return np.arange(number + 1)
    return np.unique(np.geomspace(1, number + 1, MANY_POSITIONS - 8).round().astype(int)) - 1


def _means(values: Any, weights: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Weighted means over bins."""
    totals = np.add.reduceat(np.asarray(values, float) * weights, edges[:-1])
    return totals / np.add.reduceat(weights, edges[:-1])


def ablations(losses: Mapping[str, Any], dynamics: Mapping[str, Any], title: str) -> Figure:
    """Losses with the context replaced, and gradient norms by distance.

    Args:
        losses: an `Ablations` as a mapping.
        dynamics: a `Dynamics` as a mapping.
        title: of the run.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    costs = {
        "always zero": losses["zeroed"] - losses["loss"],
        "of another sentence": (losses["shuffled"] or losses["loss"]) - losses["loss"],
    }
    for frozen in losses["frozen"]:
        tokens = "1 token" if frozen["after"] == 1 else f"{frozen['after']} tokens"
        costs[f"frozen after {tokens}"] = frozen["loss"] - frozen["loss_intact"]
    bars = left.barh(list(costs), list(costs.values()), color=ORANGE)
    left.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    left.invert_yaxis()
    left.margins(x=0.15)
    left.set_xlabel(f"loss above the intact model's, {losses['loss']:.3f} (nats)")
    norms = dynamics["gradient_norms"]
    right.plot(range(len(norms)), norms, color=BLUE, marker="o", markersize=3)
    right.set_yscale("log")
    right.set_xlabel("tokens between a context and a loss")
    if min(norms, default=0) > max(norms, default=0) / FEW_DECADES:
        log_ticks(right.yaxis)
    right.set_ylabel("norm of d loss / d context")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (left, right):
        plain(axes)
    figure.headline(title)
    return figure


def tenths(found: Mapping[str, Any], title: str) -> Figure:
    """The accuracy on a task and the drift of the contexts by position, a line for each split.

    Args:
        found: a `Tenths` as a mapping for each split.
        title: of the run.
    """
    panels = {"accuracy": "accuracy"}
    if any(split["drift"] for split in found.values()):
        panels["drift"] = "distance to the centre of the state\n(distance between centres: 1)"
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(found)))
    for axes, key in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for colour, (name, split) in zip(colours, found.items(), strict=True):
            values = np.array(split[key], float)  # None becomes nan
            places = (np.arange(len(values)) + 0.5) * split["num_positions"] / len(values)
            axes.plot(places, values, ".-", color=colour, label=name.replace("_", " "))
        axes.set_xscale("log")
        axes.set_xlabel("position in the row (middle of a tenth)")
        axes.set_ylabel(panels[key])
        log_ticks(axes.xaxis)
        plain(axes)
    figure.axes[0].legend(fontsize=8, frameon=False)
    if "drift" in panels:
        figure.axes[1].set_ylim(bottom=0)
    figure.headline(title)
    return figure


def context_over_time(contexts_TC: np.ndarray, words: Sequence[str], title: str = "") -> Figure:
    """The context after each word of a sentence: time to the right, elements downwards.

    Elements are sorted by their final value, so that what the context keeps shows as bands.

    Args:
        contexts_TC: after each word.
        words: T words; the axis has numbers where they are too many to be read.
        title: of the run.
    """
    order = np.argsort(contexts_TC[-1])
    limit = float(np.abs(contexts_TC).max()) or 1.0
    figure = Figure(figsize=(min(max(6, 0.55 * len(words)), 22), 4.5), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        contexts_TC[:, order].T,
        aspect="auto",
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
    )
    if len(words) <= MANY_WORDS:
        labels = [shortened(word) for word in words]
        axes.set_xticks(range(len(words)), labels, rotation=60, ha="right", fontsize=8)
    else:
        axes.set_xlabel("tokens read")
    axes.set_ylabel("context element (sorted by final value)")
    figure.colorbar(image, ax=axes, label="value")
    figure.headline(title)
    return figure
