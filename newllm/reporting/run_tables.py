"""Tables of any runs, and of what they are to be compared with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from newllm.reporting.document import Document, quoted
from newllm.reporting.formatting import number
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run

DEFINITION_OF_REFERENCES = (
    "On the validation sentences of each corpus, in nats per token: all tokens alike, counts of "
    "single words, pairs and triples, the grammar with probabilities estimated from the training "
    "sentences, and the grammar itself."
)
DEFINITION_OF_RUNS = (
    "Losses are means over tokens, in nats. Gap closed: how much of the way from word frequencies "
    "(unigram) to the grammar itself (oracle) the best validation loss has gone."
)


def _label(run: Run) -> str:
    return run.label


def runs_table(
    document: Document, runs: Sequence[Run], _: Translate, name: Callable[[Run], str] = _label
) -> None:
    """Any runs, one a row, with the reason where one failed; `name` says what each is called."""
    words = ("run", "seed", "corpus", "parameters", "best val loss", "best epoch", "gap closed",
             "oracle", "test loss", "status", "reason")  # fmt: skip
    document.table([_(word) for word in words], [_run_row(run, name) for run in runs])
    document.text(_(DEFINITION_OF_RUNS))


def _run_row(run: Run, name: Callable[[Run], str]) -> list[str]:
    result = run.result
    closed, parameters = result.get("gap_closed"), result.get("parameters")
    return [
        quoted(name(run)),
        quoted(result.get("seed", "-")),
        quoted(result.get("corpus", "-")),
        "-" if parameters is None else f"{parameters:,}",
        number(result.get("best_val_loss")),
        str(result.get("best_epoch") or "-"),
        "-" if closed is None else f"{100 * closed:.1f} %",
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
