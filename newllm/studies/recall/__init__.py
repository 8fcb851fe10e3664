"""Associative recall: accuracy by number of pairs, and how many bits a state holds."""

from __future__ import annotations

from collections.abc import Sequence

from newllm.reporting.document import Document, quoted
from newllm.reporting.formatting import percent
from newllm.reporting.models import NAMES
from newllm.reporting.page import Study
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run
from newllm.statistics.intervals import Interval
from newllm.studies.recall.figures import accuracy, recalled
from newllm.studies.recall.results import (
    BITS_OF_BYTE,
    BITS_OF_NUMBER,
    NAME,
    PARTS,
    Contestant,
    best_attention,
    contestants,
    own_runs,
)

DEFINITION = (
    "Rows hold pairs of a key and a value, then ask for the value of each key (MQAR). All models "
    "of a part get the same rows, curriculum, steps and three learning rates; the rate with the "
    "lowest validation loss is run again with other seeds. Accuracies and bits are means over "
    "these seeds, measured on rows that were used for nothing else. Bits recalled are a lower "
    "bound of what the state holds of a row: the bits of all values minus the loss in bits. A "
    "state of b bits holds at most b. The table shows the number of pairs with the most bits. "
    "State: memory of one sequence, in numbers of 32 bits; of a Transformer, after the longest row."
)
PUBLISHED_DEFINITION = (
    "For comparison, RWKV-7 recalls 72.9 % of 256 pairs from 8,192 numbers (arXiv 2503.14456), "
    "published as 0.547 bits per number. That figure counts the bits of keys and values, times the "
    "accuracy. Bits recalled by the definition of this page would be {density} per number."
)
EXCEEDED = (
    "**A model cannot recall more bits than its state has, but {names} did. Something besides the "
    "state must tell it the answers: do not trust these results.**"
)
LOSS_TO_ATTENTION = "At {pairs} pairs, the best Transformer ({model}) has an accuracy of {mean}."
CAPTIONS = {
    "dim32": "Accuracy (%) by model and number of pairs. Right of the line: more than in training.",
    "state": "Accuracy (%) by size of the state and number of pairs.",
}
CAPTION = (
    "Bits recalled of a row by bits of state, at the number of pairs with the most bits: each "
    "seed, and means. Triangles: the state grows with every token."
)
# 256 values of 4,096 kinds at an accuracy of 72.93 %, by the accuracy alone, from 8,192 numbers.
RWKV_7 = 0.247


def recall(document: Document, runs: Sequence[Run], _: Translate, label: Translate) -> None:
    """Add a heat map and a table for each part, and the figure of bits by bits."""
    found = contestants(runs)
    document.text(_(DEFINITION), _(PUBLISHED_DEFINITION).format(density=RWKV_7))
    if faulty := [one.variant for one in found if one.exceeds_its_state]:
        document.text(_(EXCEEDED).format(names=quoted(", ".join(faulty))))
    words = {
        **{key: label(text) for key, text in (NAMES | PARTS).items()},
        "pairs": label("pairs"),
        "accuracy": label("accuracy"),
        "bits": label("bits of state"),
        "recalled": label("bits recalled"),
        "bound": label("all bits of the state"),
        "row": label("all values of the longest row"),
        "published": label("RWKV-7, {density} bits per number").format(density=RWKV_7),
    }
    document.figure("recall_bits", recalled(found, RWKV_7, words), _(CAPTION))
    document.text(_(CAPTION))
    for part, title in PARTS.items():
        if own := [one for one in found if one.part == part]:
            document.text(f"### {_(title)}")
            document.figure(f"recall_{part}", accuracy(own, words), _(CAPTIONS[part]))
            document.text(_(CAPTIONS[part]))
            _table(document, own, _)


def _table(document: Document, found: Sequence[Contestant], _: Translate) -> None:
    """The models of a part, with what each loses to attention if it has any."""
    longest = found[0].longest_in_training
    best = best_attention(found)
    if best:
        mean = percent(best.mean("accuracy", longest).mean)
        text = _(LOSS_TO_ATTENTION)
        document.text(text.format(pairs=longest, model=_(NAMES[best.model]), mean=mean))
    headings = ["model", "chosen", "parameters", "learning rate", "state (numbers)",
                "bits recalled", "pairs", "per number", "per byte"]  # fmt: skip
    rows = [_row(one, _) for one in found]
    if best:
        headings.append("accuracy below the best Transformer")
        for row, one in zip(rows, found, strict=True):
            behind = best.mean("accuracy", longest).mean - one.mean("accuracy", longest).mean
            row.append(percent(behind))
    document.table([_(word) for word in headings], rows)


def _row(one: Contestant, _: Translate) -> list[str]:
    result, bits = one.runs[0].result, one.bits_recalled
    return [
        _(NAMES[one.model]),
        quoted(result["name"]),
        f"{result['parameters']:,}",
        quoted(one.runs[0].chose("optimizer.lr") or "-"),
        f"{one.state_bits // BITS_OF_NUMBER:,}",
        _bits(bits),
        str(one.fullest),
        f"{bits.mean * BITS_OF_NUMBER / one.state_bits:.3f}",
        f"{bits.mean * BITS_OF_BYTE / one.state_bits:.3f}",
    ]


def _bits(interval: Interval) -> str:
    """Such as `61.3 &plusmn; 2.4 (n=3)`."""
    spread = f" &plusmn; {interval.half_width:.1f}" if interval.num_runs > 1 else ""
    return f"{interval.mean:.1f}{spread} (n={interval.num_runs})"


STUDY = Study(NAME, title="How much a state holds", place=7, own=own_runs, part=recall)
