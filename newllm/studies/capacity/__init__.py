"""Capacity: how few bits a context may have, beside the exact floor."""

from __future__ import annotations

from collections.abc import Sequence

from newllm.reporting.document import Document
from newllm.reporting.formatting import number
from newllm.reporting.page import Study
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run
from newllm.studies.capacity.figures import capacity
from newllm.studies.capacity.results import (
    MEMORIES,
    NAME,
    SOURCES,
    TOLERANCE,
    Capacity,
    capacities,
    own_runs,
)

DEFINITION = (
    "Sources whose losses are known exactly, and context models whose contexts are rounded to b "
    "bits. The best window of k symbols has the loss H(X_{{k+1}} | X_1 ... X_k). These losses give "
    "a floor, below which no model has its expected loss if it reads a symbol and a context of b "
    "bits. The floor meets the entropy rate where b is the information that the past holds about "
    "the future beyond the symbol that is read: the predicted smallest context. Needed at least is "
    "the b for which the floor lies within {tolerance} of the gap between the window of one symbol "
    "and the source itself; measured is the smallest context whose mean test loss does. Losses are "
    "in nats per symbol, compared with that of the source itself on the same rows."
)
NONE_BELOW = "No mean loss is below the floor, given its 95 % interval."
BELOW = "Below the floor, given the 95 % interval of the mean: {points}."
CAPTION = (
    "Loss by size of the context. Points: means and 95 % intervals over seeds. Line: the floor; "
    "the shaded area is out of reach. Ticks on the right: the best windows of k symbols. Dotted: "
    "the predicted smallest context."
)
NONE_LARGE_ENOUGH = "none of these"
OTHERS = (
    "The same for other memories whose numbers are rounded, as a context's are: the smallest, in "
    "bits, whose mean test loss is as low. The sizes that were tried differ."
)
PLAIN = "context"


def smallest_contexts(
    document: Document, runs: Sequence[Run], _: Translate, label: Translate
) -> None:
    """Add the figure and the table."""
    found = capacities(runs)
    document.text(_(DEFINITION).format(tolerance=f"{TOLERANCE:.0%}".replace("%", " %")))
    words = {
        "bits": label("bits of the context"),
        "loss": label("test loss (nats)"),
        "floor": label("floor"),
        "windows": label("best windows"),
        "measured": label("measured"),
        "predicted": label("predicted smallest context"),
        **{source: label(text) for source, text in SOURCES.items()},
    }
    document.figure("capacity", capacity(found, words), _(CAPTION))
    points = [
        f"{_(SOURCES[one.source])}, b = {bits:g}" for one in found for bits in one.below_floor
    ]
    document.text(_(BELOW).format(points="; ".join(points)) if points else _(NONE_BELOW))
    headings = ("source", "window of one symbol", "entropy rate", "needed at least (bits)",
                "predicted (bits)", "measured (bits)", "measured / predicted")  # fmt: skip
    document.table([_(word) for word in headings], [_row(one, _) for one in found])
    if others := capacities(runs, [None, *MEMORIES]):
        _compare_memories(document, others, _)


def _compare_memories(document: Document, found: Sequence[Capacity], _: Translate) -> None:
    """The smallest of each kind of memory, for sources on which there are several."""
    measured = {(one.source, one.memory): one for one in found}
    sources = dict.fromkeys(one.source for one in found if one.memory)
    if sources:
        document.text(_(OTHERS))
        names = [_(name) for name in (PLAIN, *MEMORIES.values())]
        rows = []
        for source in sources:
            own = [measured.get((source, memory)) for memory in (None, *MEMORIES)]
            predicted = next(one.predicted for one in own if one)
            sizes = [_smallest(one, _) if one else "-" for one in own]
            rows.append([_(SOURCES[source]), f"{predicted:.2f}", *sizes])
        document.table([_("source"), _("predicted (bits)"), *names], rows)


def _smallest(one: Capacity, _: Translate) -> str:
    return _(NONE_LARGE_ENOUGH) if one.measured is None else f"{one.measured:g}"


def _row(one: Capacity, _: Translate) -> list[str]:
    measured = one.measured
    return [
        _(SOURCES[one.source]),
        number(one.window_losses[0]),
        "-".join(dict.fromkeys(map(number, (one.entropy_rate, one.window_losses[-1])))),
        f"{one.needed:.2f}",
        f"{one.predicted:.2f}",
        _smallest(one, _),
        "-" if measured is None or not one.predicted else f"{measured / one.predicted:.2f}",
    ]


STUDY = Study(
    NAME, title="How few bits a context may have", place=6, own=own_runs, part=smallest_contexts
)
