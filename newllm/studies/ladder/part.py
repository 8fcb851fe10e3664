"""The part of the report about the changes from the original to the modern recipe."""

from __future__ import annotations

from collections.abc import Sequence

from newllm.reporting.document import Document
from newllm.reporting.formatting import signed, with_count
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run
from newllm.studies.ladder.effects import RUNGS, climb, ends, is_rung

DEFINITION = (
    "On 500 sentences, best validation loss, mean over tokens in nats. The original (without early "
    "stopping): {original}; the modern recipe: {modern}. An effect is the loss with the change "
    "minus that without it, with its 95 % interval, in pairs of one seed where model and sentences "
    "have the same size (else Welch's); below zero the change helps. n is the number of seeds. The "
    "original shuffles its batches as it is."
)


def ladder_effects(document: Document, runs: Sequence[Run], _: Translate) -> None:
    """What each change from the original to the modern recipe does; nothing without such runs."""
    if not any(is_rung(run) for run in runs):
        return
    original, modern = ends(runs)
    document.fold(_("From the original to the modern recipe, one change at a time"))
    document.text(_(DEFINITION).format(original=with_count(original), modern=with_count(modern)))
    words = ("change", "original with it", "effect", "modern without it", "effect")
    document.table(
        [_(word) for word in words],
        [
            [
                _(RUNGS[rung.name]),
                with_count(rung.added),
                signed(rung.effect_added),
                with_count(rung.removed),
                signed(rung.effect_removed),
            ]
            for rung in climb(runs)
        ],
    )
    document.unfold()
