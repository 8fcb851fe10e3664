"""Verdicts on the claims of the published summary."""

from __future__ import annotations

from collections.abc import Sequence

from newllm.reporting.document import Document, quoted
from newllm.reporting.page import Study
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run
from newllm.statistics.intervals import criteria
from newllm.studies.claims.verdicts import NAME, counts, evidence, judge

DEFINITION_OF_CLAIMS = (
    "Line numbers refer to the published summary. Differences are first minus second, with 95 "
    "% intervals that are not corrected for multiple comparisons. Verdicts come from t-tests "
    "of difference and of equivalence, with Holm's correction over all comparisons of a kind; "
    "less than {loss} nats, or {spike} in the ratio of a spike, counts as no effect. n is the "
    "number of seeds or corpora. Runs are paired where runs with the same seed start from the "
    "same weights or read the same corpus. Planned seeds: {seeds}."
)


def own_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs that verdicts rest on."""
    return evidence(runs, judge(runs))


def claims_table(document: Document, runs: Sequence[Run], _: Translate, label: Translate) -> None:
    """Add the verdict on every claim, with its numbers."""
    judgements = judge(runs)
    found = ", ".join(f"{_(word)} {number}" for word, number in counts(judgements).items())
    seeds = ", ".join(f"{corpus} {number}" for corpus, number in criteria().seeds.items())
    definition = _(DEFINITION_OF_CLAIMS).format(seeds=seeds, **criteria().smallest_effects)
    document.text(f"**{found}**", definition)
    words = ("line", "claim", "verdict", "numbers")
    document.table(
        [_(word) for word in words],
        [
            [str(j.claim.line), quoted(_(j.claim.statement)), _(j.verdict), quoted(j.numbers)]
            for j in judgements
        ],
    )


STUDY = Study(NAME, title="Claims", place=1, own=own_runs, part=claims_table)
