"""The figure of state tracking: accuracy by model and length, a heat map for each task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap

from newllm.reporting.drawing import Figure
from newllm.reporting.formatting import percent_at_least
from newllm.reporting.models import MODELS
from newllm.studies.state_tracking.results import TASKS, Entry, lengths_of

NUM_COLUMNS = 2
COLOURS = "viridis"
DARK = 0.6  # levels below it have white numbers
NOT_TESTED = "#EEEEEE"


def accuracies(entries: Sequence[Entry], words: Mapping[str, str]) -> Figure:
    """Mean accuracies in percent, coloured from the level of guessing to 100 %.

    Args:
        entries: of one task or several.
        words: for titles and axes: `length`, `guessing`, and the names of tasks and models.
    """
    tasks = [task for task in TASKS if any(entry.task == task for entry in entries)]
    models = [model for model in MODELS if any(entry.model == model for entry in entries)]
    num_rows = math.ceil(len(tasks) / NUM_COLUMNS)
    figure = Figure(figsize=(11, num_rows * (0.9 + 0.24 * len(models))), layout="constrained")
    panels = figure.subplots(num_rows, NUM_COLUMNS, squeeze=False)
    colours = matplotlib.colormaps[COLOURS].with_extremes(bad=NOT_TESTED)
    for axes, task in zip(panels.flat, tasks, strict=False):
        _heat_map(axes, [entry for entry in entries if entry.task == task], models, colours)
        axes.set_title(words[task], loc="left", fontsize=9)
        axes.set_yticks(range(len(models)), [words[model] for model in models], fontsize=8)
    for axes in panels[:, 1:].flat:
        axes.tick_params(labelleft=False)
    for axes in panels.flat[len(tasks) :]:
        axes.set_axis_off()
    for axes in panels.flat[max(0, len(tasks) - NUM_COLUMNS) : len(tasks)]:
        axes.set_xlabel(words["length"], fontsize=8)
    bar = figure.colorbar(ScalarMappable(cmap=colours), ax=panels, shrink=0.6, aspect=40)
    bar.set_ticks([0, 1], labels=[words["guessing"], "100 %"], fontsize=8)
    return figure


def _heat_map(
    axes: Axes, entries: Sequence[Entry], models: Sequence[str], colours: Colormap
) -> None:
    """A row for each model, a column for each length, and a line after the training lengths."""
    lengths = lengths_of(entries)
    levels = np.full((len(models), len(lengths)), np.nan)
    for entry, (column, length) in product(entries, enumerate(lengths)):
        if accuracy := entry.accuracy(length):
            row = models.index(entry.model)
            level = max(0, (accuracy.mean - entry.guessing) / (1 - entry.guessing))
            levels[row, column] = level
            ink, number = "white" if level < DARK else "black", percent_at_least(accuracy.mean)
            axes.text(column, row, number, color=ink, ha="center", va="center", fontsize=7)
    axes.imshow(levels, cmap=colours, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=8)
    num_trained = lengths.index(entries[0].longest_trained) + 1
    axes.axvline(num_trained - 0.5, color="red", linewidth=1.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
