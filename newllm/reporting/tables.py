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
from newllm.statistics.labels import differing
from newllm.statistics.variants import Variant

Table = tuple[list[str], list[list[str]]]  # headings and rows

COMPARISON = ("group", "seeds", "best val loss", "difference", "verdict", "seeds to decide")
COSTS = ("group", "test loss", "gap closed", "parameters", "state (bytes)", "seconds")
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
    """What was compared and how it came out."""
    rows = [
        [
            standing.variant.label,
            _counted(standing.variant, _),
            bounds(standing.variant.loss),
            signed(standing.difference),
            _(standing.verdict),
            seeds_needed(standing, _),
        ]
        for standing in contest.ordered
    ]
    return _without_empty(COMPARISON, rows)


def costs(contest: Contest) -> Table:
    """What it costs."""
    rows = [
        [
            variant.label,
            bounds(variant.interval("test_loss")),
            percent(variant.mean("gap_closed")),
            whole(variant.first("parameters")),
            whole(variant.first("state_bytes")),
            whole(variant.mean("seconds")),
        ]
        for variant in (standing.variant for standing in contest.ordered)
    ]
    return _without_empty(COSTS, rows)


def _without_empty(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without the columns in which no cell says anything."""
    kept = [i for i in range(len(headings)) if any(row[i] not in ("", "-") for row in rows)]
    return [headings[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _counted(variant: Variant, _: Translate) -> str:
    """How many seeds, and how many runs have none of these figures: `4, 1 diverged`."""
    parts = [str(variant.loss.num_runs)] if variant.loss else []
    return ", ".join(
        [*parts, *(f"{number} {_(word)}" for word, number in variant.not_done.items())]
    )


def chosen(variants: Sequence[Variant]) -> Mapping[str, str]:
    """By label, all choices in which these variants differ, where a label leaves some out."""
    keys = differing([variant.choices for variant in variants])
    found = {
        variant.label: " ".join(
            f"{key}={variant.choices[key]}".rstrip("=") for key in keys if key in variant.choices
        )
        for variant in variants
    }
    shows_less = any(len(text.split()) > len(label.split()) for label, text in found.items())
    return found if shows_less else {}


def runs_table(
    document: Document, runs: Sequence[Run], _: Translate, names: Mapping[int, str] | None = None
) -> None:
    """Any runs, one a row, with the reason where one failed; `names` are by the `id` of a run."""
    words = ("run", "seed", "corpus", "parameters", "best val loss", "best epoch", "gap closed",
             "oracle", "test loss", "status", "reason")  # fmt: skip
    rows = [_run_row(run, names[id(run)] if names else run.label) for run in runs]
    document.table([_(word) for word in words], rows)
    document.text(_(DEFINITION_OF_RUNS))


def _run_row(run: Run, name: str) -> list[str]:
    result = run.result
    return [
        quoted(name),
        quoted(result.get("seed", "-")),
        quoted(result.get("corpus", "-")),
        whole(result.get("parameters")),
        number(result.get("best_val_loss")),
        str(result.get("best_epoch") or "-"),
        percent(result.get("gap_closed")),
        number(result.get("oracle_loss")),
        number(result.get("test_loss")),
        quoted(result["status"]),
        quoted(result.get("error") or ""),
    ]


def references_table(document: Document, runs: Sequence[Run], _: Translate) -> None:
    """What the runs are to be compared with, once for all that have the same."""
    found: dict[str, tuple[str, Mapping[str, float]]] = {}
    for run in runs:
        if references := run.result.get("references"):
            found.setdefault(json.dumps(references), (run.result["corpus"], references))
    names = list(
        dict.fromkeys(name for _corpus, references in found.values() for name in references)
    )
    if not names:
        return
    document.text(f"## {_('References')}")
    document.table(
        [_("corpus"), *(name.replace("_", " ") for name in names)],
        [
            [quoted(corpus), *(number(references.get(name)) for name in names)]
            for corpus, references in found.values()
        ],
    )
    document.text(_(DEFINITION_OF_REFERENCES))
