"""The part of the report about how loss scales."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from newllm.analysis.gathering import Run
from newllm.analysis.scaling import NAMES, Fit, Point, best_contexts, fit, points
from newllm.analysis.scaling_figures import scaling
from newllm.reporting.document import Document
from newllm.reporting.language import Translate

DEFINITION = (
    "Test loss above that of the grammar, in nats per token, of the context model trained on N "
    "sentences with P parameters and a context of C numbers; one run a point. The law, "
    "a (N/400)^-alpha + b (P/50,000)^-beta + c (C/16)^-gamma, is fitted to the logarithms of "
    "{number} gaps; runs scatter around it by a factor of {spread}. Intervals are 95 %, by a "
    "bootstrap over the points."
)
PREDICTION = (
    "For the largest point (N = {sentences}, P = {parameters}, C = {context}), which is not among "
    "them, the law says {gap} [{low}, {high}]; "
)
MEASURED = "measured afterwards: {gap} ({number} runs)."
NOT_MEASURED = "it has not been run."
CAPTION = (
    "Measured gaps and the law. Left and middle: the largest context of the grid; right: the most "
    "parameters of the grid. Rings: beyond the grid."
)
LARGEST = Point(10_000, 2_000_000, 512, 0.0)


def scaling_law(document: Document, runs: Sequence[Run], _: Translate, label: Translate) -> None:
    """Tables and a figure; nothing without such runs."""
    measured = points(runs)
    if not measured:
        return
    found = fit(measured)
    document.fold(_("How loss scales"))
    if found:
        number = sum(not point.is_largest for point in measured)
        spread = f"{math.exp(found.spread):.2f}"
        document.text(_(DEFINITION).format(number=number, spread=spread))
        document.text(_prediction(measured, found, _))
    words = {
        "gap": label("test loss above the grammar's (nats)"),
        "sentences": label("training sentences"),
        "parameters": label("parameters"),
        "context": label("context size"),
    }
    document.figure("scaling", scaling(measured, found, words), _(CAPTION))
    if found:
        rows = []
        for index, name in enumerate(NAMES):
            value, low, high = found.constant(index)
            rows.append([name, f"{value:.3g}", f"[{low:.3g}, {high:.3g}]"])
        document.table([_("constant"), _("value"), _("interval")], rows)
    _contexts(document, measured, _)
    document.unfold()


def _prediction(measured: Sequence[Point], found: Fit, _: Translate) -> str:
    gap, low, high = found.prediction(LARGEST)
    text = _(PREDICTION).format(
        sentences=f"{LARGEST.sentences:,}",
        parameters=f"{LARGEST.parameters:,}",
        context=LARGEST.context,
        gap=f"{gap:.4f}",
        low=f"{low:.4f}",
        high=f"{high:.4f}",
    )
    run = [point.gap for point in measured if point.is_largest]
    if not run:
        return text + _(NOT_MEASURED)
    return text + _(MEASURED).format(gap=f"{statistics.fmean(run):.4f}", number=len(run))


def _contexts(document: Document, measured: Sequence[Point], _: Translate) -> None:
    """The best context for each number of sentences and parameters."""
    table = best_contexts([point for point in measured if not point.is_largest])
    sizes = sorted({parameters for row in table.values() for parameters, *__ in row})
    headings = [_("training sentences"), *(f"P = {size:,}" for size in sizes)]
    rows = []
    for sentences, row in table.items():
        cells = {parameters: f"{context} ({gap:.4f})" for parameters, context, gap in row}
        rows.append([f"{sentences:,}", *(cells.get(size, "-") for size in sizes)])
    document.text(_("The context with the least gap, and that gap:"))
    document.table(headings, rows)
