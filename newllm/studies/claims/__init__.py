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
    "Line: of the published summary. Differences are first minus second, with 95 % intervals, each "
    "on its own; verdicts by t-tests of difference and of equivalence (less than {loss} nats, or "
    "{spike} of a spike's ratio, is no effect), with Holm's correction over all comparisons of a "
    "kind. n is the number of seeds, or of corpora, pairs where runs of one seed start alike or "
    "read the same corpus. Planned seeds: {seeds}."
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
