"""How loss scales with sentences, parameters and context."""

from __future__ import annotations

import math
from collections.abc import Sequence

from newllm.config.naming import split
from newllm.config.study_file import variants_of
from newllm.reporting.document import Document
from newllm.reporting.page import Study
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run
from newllm.studies.scaling.figures import scaling
from newllm.studies.scaling.law import (
    LARGEST,
    NAME,
    NAMES,
    Fit,
    Point,
    best_contexts,
    fit,
    point_of,
    points,
)

DEFINITION = (
    "A gap is the test loss minus that of the grammar, in nats per token. The context model "
    "has P parameters and a context of size C, which determine the layer width H, and is "
    "trained on N sentences; there is one run per point. Epochs, batches, dropout and weight "
    "decay depend on N, from the values of the modern recipe at 400 sentences to those of "
    "modern_12500 at 10,000. The learning rate depends on P. The law, a (H/16)^delta "
    "(C/16)^gamma 400/(N + N0) + b (N/400)^-kappa (H/16)^-beta, is fitted to the logarithms of "
    "{number} gaps. The typical deviation of a run from the law is a factor of {spread}, the "
    "largest {worst}. The first term describes the estimation error, the second the error of a "
    "model that is too narrow. The form of the law was found on the same points. Intervals are "
    "95 %, from a bootstrap over models (P and C), given the recipe and the sentences of each "
    "N; b, kappa and beta depend on the few narrow models."
)
NO_GAP = "Excluded because their test loss is below that of the grammar by chance: {number}."
PREDICTION = (
    "For the largest point (N = {sentences}, P = {parameters}, C = {context}), which was not "
    "used for the fit (H = {width}; the widest model in the fit has {widest}), the law "
    "predicts {gap} [{low}, {high}] for one run; "
)
MEASURED = "measured afterwards: {gaps}."
NOT_MEASURED = "it has not been run."
CONTEXTS = "Context sizes with a gap of at most {factor} times the smallest, and the smallest gap:"
CAPTION = (
    "Measured gaps and the law. Left and middle: the largest context size of the grid. Right: "
    "the largest number of parameters of the grid. Rings: beyond the grid."
)
PARAMETERS, WIDTH = 2_998_630, 659  # what the budget of the largest point comes to


def own_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs that are points of the law."""
    return [run for run in runs if point_of(run)]


def largest_point() -> Point:
    """The point beyond the grid, before it was measured."""
    chosen = dict(map(split, variants_of(NAME)[LARGEST]))
    sentences, context = int(chosen["data.train_sentences"]), int(chosen["model.context_dim"])
    return Point(sentences, PARAMETERS, WIDTH, context, gap=0.0, is_largest=True)


def scaling_law(document: Document, runs: Sequence[Run], _: Translate, label: Translate) -> None:
    """Add the tables and the figure."""
    everything = points(runs)
    measured = [point for point in everything if point.gap > 0]
    found = fit(measured)
    if found:
        number = sum(not point.is_largest for point in measured)
        misses = [
            abs(math.log(point.gap / found.law.gap(point)))
            for point in measured
            if not point.is_largest
        ]
        spread, worst = (f"{math.exp(factor):.2f}" for factor in (found.spread, max(misses)))
        document.text(_(DEFINITION).format(number=number, spread=spread, worst=worst))
        document.text(_prediction(measured, found, _))
    if left_out := len(everything) - len(measured):
        document.text(_(NO_GAP).format(number=left_out))
    words = {
        "gap": label("test loss above oracle (nats)"),
        "sentences": label("training sentences"),
        "parameters": label("parameters"),
        "context": label("context size"),
        "measured": label("measured"),
        "law": label("the law"),
        "largest": label("measured, beyond the grid"),
    }
    if measured:
        document.figure("scaling", scaling(measured, found, words), _(CAPTION))
    if found:
        rows = []
        for index, name in enumerate(NAMES):
            value, low, high = as_known(*found.constant(index))
            rows.append([name, value, f"[{low}, {high}]"])
        document.table([_("constant"), _("value"), _("interval")], rows)
    _contexts(document, measured, found, _)


def as_known(value: float, low: float, high: float) -> tuple[str, str, str]:
    """A value and the ends of its interval, with as many digits as the interval leaves certain.

    The half width has two digits; where it exceeds the value, each number has two. Further digits
    differ between machines.
    """
    half_width = (high - low) / 2
    numbers = value, low, high
    if 0 < half_width < abs(value):
        digits = max(0, 1 - math.floor(math.log10(half_width)))
        written = [f"{number:.{digits}f}" for number in numbers]
    else:
        written = [f"{float(f'{number:.2g}'):g}" for number in numbers]
    return written[0], written[1], written[2]


def _prediction(measured: Sequence[Point], found: Fit, _: Translate) -> str:
    largest = largest_point()
    gap, low, high = found.prediction(largest)
    text = _(PREDICTION).format(
        sentences=f"{largest.sentences:,}",
        parameters=f"{largest.parameters:,}",
        context=largest.context,
        width=largest.width,
        widest=max(point.width for point in measured if not point.is_largest),
        gap=f"{gap:.4f}",
        low=f"{low:.4f}",
        high=f"{high:.4f}",
    )
    gaps = [point.gap for point in measured if point.is_largest]
    if not gaps:
        return text + _(NOT_MEASURED)
    return text + _(MEASURED).format(gaps=", ".join(f"{gap:.4f}" for gap in sorted(gaps)))


def _contexts(
    document: Document, measured: Sequence[Point], found: Fit | None, _: Translate
) -> None:
    """The best contexts for each number of sentences and parameters."""
    factor = math.exp(found.spread) if found else 1.0
    table = best_contexts([point for point in measured if not point.is_largest], factor)
    sizes = sorted({parameters for row in table.values() for parameters in row})
    headings = [_("training sentences"), *(f"P = {size:,}" for size in sizes)]
    rows = []
    for sentences, row in sorted(table.items()):
        cells = {
            size: f"{', '.join(str(context) for context in contexts)} ({gap:.4f})"
            for size, (contexts, gap) in row.items()
        }
        rows.append([f"{sentences:,}", *(cells.get(size, "-") for size in sizes)])
    document.text(_(CONTEXTS).format(factor=f"{factor:.2f}"))
    document.table(headings, rows)


STUDY = Study(NAME, title="How loss scales", place=4, own=own_runs, part=scaling_law)
