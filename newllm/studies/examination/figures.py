"""The card as a picture: a row for each task, the model among the baselines, and the verdict."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.lines import Line2D

from newllm.reporting.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, Figure
from newllm.studies.examination.card import Card, Row
from newllm.studies.examination.measured import MODEL
from newllm.studies.examination.results import BASELINES

COLOURS = {MODEL: ORANGE, BASELINES["lstm"]: GREEN, BASELINES["transformer"]: BLUE}
ROW_HEIGHT = 0.52  # inches
WIDTH = 13.0
RIGHT_IS_BETTER = "right is better; lines: 95 % intervals"
COLUMNS = {"name": 0.012, "value": 0.24, "axis": 0.385, "verdict": 0.60}  # of the width
LONGEST_NAME, LONGEST_VERDICT, LONGEST_SENTENCE = 36, 66, 150  # characters of a line


def picture(card: Card) -> Figure:
    """The whole card on one page."""
    rows = card.rows
    sentences = [line for text in card.sentences for line in textwrap.wrap(text, LONGEST_SENTENCE)]
    top = 0.75 + 0.24 * len(sentences)
    height = top + ROW_HEIGHT * len(rows) + 0.3
    figure = Figure(figsize=(WIDTH, height))
    figure.text(COLUMNS["name"], 1 - 0.3 / height, card.title, fontsize=15, weight="bold")
    for number, line in enumerate(sentences):
        figure.text(COLUMNS["name"], 1 - (0.6 + 0.24 * number) / height, line, fontsize=10)
    _legend(figure, card, 1 - 0.3 / height)
    for number, row in enumerate(rows):
        middle = 1 - (top + ROW_HEIGHT * (number + 0.5)) / height
        _draw_row(figure, row, middle, height)
    return figure


def _legend(figure: Figure, card: Card, place: float) -> None:
    present = {name for row in card.rows for name in row.points}
    shown = [name for name in COLOURS if name in present]
    for number, name in enumerate(shown):
        left = COLUMNS["verdict"] + 0.13 * number
        figure.text(left, place, "●", color=COLOURS[name], fontsize=11)
        words = "this model" if name == MODEL else name
        figure.text(left + 0.014, place, words, fontsize=10)
    figure.text(COLUMNS["axis"], place, RIGHT_IS_BETTER, fontsize=8, color=GREY)


def _draw_row(figure: Figure, row: Row, middle: float, height: float) -> None:
    text: dict[str, Any] = {"fontsize": 9, "va": "center"}
    figure.text(COLUMNS["name"], middle, _lines(row.name, LONGEST_NAME), **text)
    figure.text(COLUMNS["value"], middle, html.unescape(row.value), weight="bold", **text)
    figure.text(COLUMNS["verdict"], middle, _lines(row.verdict, LONGEST_VERDICT), **text)
    edge = middle + ROW_HEIGHT / 2 / height
    figure.add_artist(Line2D([COLUMNS["name"], 0.988], [edge, edge], color=GREY, linewidth=0.4))
    if row.points:
        box = (COLUMNS["axis"], middle - 0.1 / height, 0.18, 0.3 / height)
        _draw_points(figure, row, box)
    elif row.others:
        others = "\n".join(f"{name}: {html.unescape(value)}" for name, value in row.others.items())
        figure.text(COLUMNS["axis"], middle, others, color=GREY, **text)


def _draw_points(figure: Figure, row: Row, box: Sequence[float]) -> None:
    axes = figure.add_axes((box[0], box[1], box[2], box[3]))
    for number, (name, mean) in enumerate(row.points.items()):
        place = -number
        if mean.num_runs > 1:
            axes.plot([mean.low, mean.high], [place, place], color=COLOURS[name], linewidth=1.5)
        axes.plot([mean.mean], [place], "o", color=COLOURS[name], markersize=6)
    low = min(mean.mean for mean in row.points.values())
    high = max(mean.mean for mean in row.points.values())
    ends = [end for m in row.points.values() if m.num_runs > 1 for end in (m.low, m.high)]
    least, most = min([low, *ends]), max([high, *ends])
    margin = 0.25 * (most - least) or 0.1 * abs(high) or 1.0
    left, right = least - margin, most + margin
    axes.set_xlim((right, left) if row.is_loss else (left, right))  # better is right
    axes.set_ylim(-len(row.points) + 0.4, 0.6)
    axes.set_yticks([])
    axes.set_xticks([low, high] if high > low else [low])
    axes.tick_params(labelsize=6, length=2, pad=1, colors=BLACK)
    axes.xaxis.set_major_formatter("{x:.3g}")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)


def _lines(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, max_lines=3, placeholder=" …"))
