"""Tables of groups, the same in the terminal and on the page, and of single runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from newllm.reporting.answer import seeds_needed
from newllm.reporting.document import Document, quoted
from newllm.reporting.formatting import bounds, number, percent, signed, whole
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run
from newllm.statistics.comparisons import Contest
from newllm.statistics.variants import Variant

Table = tuple[list[str], list[list[str]]]  # headings and rows

COMPARISON = ("group", "seeds", "best val loss", "difference", "verdict", "seeds to decide")
COSTS = (
    "group",
    "test loss",
    "test bits per byte",
    "gap closed",
    "val accuracy",
    "parameters",
    "state (bytes)",
    "seconds",
)
DEFINITION_OF_REFERENCES = (
    "Losses on the validation sentences of each corpus, in nats per token: uniform, unigram, "
    "bigram and trigram counts, the grammar with probabilities estimated from the training "
    "sentences, and the grammar itself."
)
DEFINITION_OF_RUNS = (
    "Losses are means over tokens, in nats. Gap closed: the fraction of the gap between word "
    "frequencies (unigram) and the grammar itself (oracle) that the best validation loss "
    "closes."
)


def comparison(contest: Contest, _: Translate) -> Table:
    """Losses, differences from the baseline and verdicts."""
    rows = [
        [
            standing.variant.label,
            _seeds(standing.variant, _),
            bounds(standing.variant.loss),
            signed(standing.difference),
            _(standing.verdict),
            seeds_needed(standing, _),
        ]
        for standing in contest.ordered
    ]
    return _without_empty(COMPARISON, rows)


def costs(contest: Contest) -> Table:
    """Test losses, accuracies, sizes and times."""
    rows = [
        [
            variant.label,
            bounds(variant.interval("test_loss")),
            bounds(variant.interval("test_bits_per_byte")),
            percent(_mean(variant, "gap_closed")),
            percent(_mean(variant, "val_accuracy")),
            whole(variant.first("parameters")),
            whole(variant.first("state_bytes")),
            whole(_mean(variant, "seconds")),
        ]
        for variant in (standing.variant for standing in contest.ordered)
    ]
    return _without_empty(COSTS, rows)


def _mean(variant: Variant, name: str) -> float | None:
    interval = variant.interval(name)
    return interval.mean if interval else None


def _without_empty(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without the columns whose cells are all empty."""
    kept = [i for i in range(len(headings)) if any(row[i] not in ("", "-") for row in rows)]
    return [headings[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _seeds(variant: Variant, _: Translate) -> str:
    """The number of seeds, and of runs without a result, such as `4, 1 diverged`."""
    parts = [str(variant.loss.num_runs)] if variant.loss else []
    return ", ".join(parts + [f"{number} {_(word)}" for word, number in variant.not_done.items()])


def runs_table(
    document: Document, runs: Sequence[Run], _: Translate, names: Mapping[int, str] | None = None
) -> None:
    """Single runs, with the reason where one failed; `names` are by the `id` of a run."""
    words = ("run", "seed", "corpus", "parameters", "best val loss", "best epoch", "gap closed",
             "oracle", "test loss", "status", "reason")  # fmt: skip
    rows = [
        [
            quoted(names[id(run)] if names else run.label),
            quoted(run.result.get("seed", "-")),
            quoted(run.result.get("corpus", "-")),
            whole(run.result.get("parameters")),
            number(run.result.get("best_val_loss")),
            str(run.result.get("best_epoch") or "-"),
            percent(run.result.get("gap_closed")),
            number(run.result.get("oracle_loss")),
            number(run.result.get("test_loss")),
            quoted(run.status),
            quoted(run.result.get("error") or ""),
        ]
        for run in runs
    ]
    document.table([_(word) for word in words], rows)
    document.text(_(DEFINITION_OF_RUNS))


def references_table(document: Document, runs: Sequence[Run], _: Translate) -> None:
    """The references of the runs, a row for all runs that share them."""
    found: dict[str, tuple[str, Mapping[str, float]]] = {}
    for run in runs:
        if references := run.result.get("references"):
            found.setdefault(json.dumps(references), (run.result["corpus"], references))
    names = list(dict.fromkeys(name for _corpus, own in found.values() for name in own))
    if not names:
        return
    document.text(f"## {_('References')}")
    document.table(
        [_("corpus"), *(name.replace("_", " ") for name in names)],
        [
            [quoted(corpus), *(number(own.get(name)) for name in names)]
            for corpus, own in found.values()
        ],
    )
    document.text(_(DEFINITION_OF_REFERENCES))
