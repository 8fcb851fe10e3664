"""The page of one's own runs: is mine better, by how much, and what would decide it."""

from __future__ import annotations

from collections.abc import Sequence

from newllm.reporting.answer import answer
from newllm.reporting.document import Document, quoted
from newllm.reporting.tables import (
    Table,
    chosen,
    comparison,
    costs,
    references_table,
    runs_table,
)
from newllm.reporting.translation import Translate
from newllm.reporting.variant_figures import (
    MOST_CURVES,
    MOST_ROWS,
    curves,
    forest,
    has_curves,
)
from newllm.runs.gathering import Run
from newllm.statistics.comparisons import Contest
from newllm.statistics.intervals import criteria

RULES = (
    "Below zero, a group is better than the baseline. Differences are taken {how}. Verdicts "
    'are corrected for {number} comparisons; "no effect" means that the difference is '
    "certainly smaller than {effect} nats."
)
PAIRED = "between runs with the same seed"
MIXED = "between runs with the same seed where both groups have them"
DEFINITION = (
    "A group holds the runs that differ only in their seed. Losses are best validation losses, "
    "averaged over tokens, in nats: mean and 95 % interval over seeds. A difference is a "
    "group's loss minus that of the baseline ({baseline}), with its 95 % interval: paired by "
    "seed, so that both runs read the same batches (Student's t-test), or unpaired where the "
    "groups share fewer than two seeds or were trained on different sentences (Welch's "
    "t-test). Verdicts come from a test of difference and a test of equivalence, both at level "
    "{alpha:g} after Holm's correction over all {number} comparisons of this page. A "
    "comparison can therefore be undecided although its interval excludes zero. The seeds that "
    "would decide are computed for a power of {power:g} and the scatter of these runs: the "
    "first number detects a difference as large as the observed one, the last number detects a "
    "difference of {effect} or shows that it is smaller."
)
FOREST_CAPTION = (
    "Left: each seed (ticks), mean and 95 % interval. Right: differences from the baseline; hollow "
    "points are differences of means without an interval."
)
CURVES_CAPTION = (
    "Validation loss by epoch: mean and 95 % band over seeds, up to the last epoch that all "
    "seeds of a group have reached. The start of training may lie above the axes."
)


def own_runs(
    document: Document,
    found: Sequence[Contest],
    runs: Sequence[Run],
    _: Translate,
    label: Translate,
) -> None:
    """For each corpus an answer, a figure and a table; curves, choices and single runs below."""
    if len(found) > 1:
        document.text(
            _("Losses on different corpora cannot be compared, so each corpus has its own section.")
        )
    for number, contest in enumerate(found, 1):
        if len(found) > 1:
            document.text(f"## {quoted(contest.corpus)}")
        document.text(f"**{quoted(answer(contest, _))}**")
        name = "comparison" if len(found) == 1 else f"comparison{number}"
        _forest(document, contest, name, _, label)
        _table(document, comparison(contest, _), _)
        _table(document, costs(contest), _)
    _rules(document, found, _)
    _curves(document, found, _, label)
    _choices(document, found, _)
    document.fold(f"{_('All runs')} ({len(runs)})")
    names = {id(run): v.label for contest in found for v in contest.variants for run in v.runs}
    runs_table(document, runs, _, names)
    references_table(document, runs, _)
    document.unfold()


def _forest(
    document: Document, contest: Contest, name: str, _: Translate, label: Translate
) -> None:
    shown = contest.foremost(MOST_ROWS)
    if len(shown) < 2:
        return
    document.figure(name, forest(contest, label), _(FOREST_CAPTION))
    document.text(_(FOREST_CAPTION), *_left_out(contest, MOST_ROWS, _))


def _left_out(contest: Contest, number: int, _: Translate) -> list[str]:
    """Who is not drawn."""
    shown = {standing.variant.label for standing in contest.foremost(number)}
    labels = [s.variant.label for s in contest.ordered if s.variant.loss]
    missing = [label for label in labels if label not in shown]
    if not missing:
        return []
    text = _("The figure shows the baseline and the {number} lowest means. Not shown: {names}.")
    return [text.format(number=number - 1, names=quoted("; ".join(missing)))]


def _table(document: Document, table: Table, _: Translate) -> None:
    """Only the first column's cells may be broken into lines."""
    headings, rows = table
    document.table(
        [_(word) for word in headings],
        [
            [quoted(row[0]), *(quoted(cell).replace(" ", "&nbsp;") for cell in row[1:])]
            for row in rows
        ],
    )


def _rules(document: Document, found: Sequence[Contest], _: Translate) -> None:
    """What was done to tell groups apart: in short, and folded the whole of it."""
    compared = [s.sides for contest in found for s in contest.standings if s.sides]
    if not compared:
        return
    effect = criteria().smallest_effects["loss"]
    how = _(PAIRED if all(sides.is_paired for sides in compared) else MIXED)
    document.text(_(RULES).format(how=how, number=len(compared), effect=effect))
    baselines = dict.fromkeys(contest.baseline.label for contest in found)
    document.fold(_("How the groups are compared"))
    document.text(
        _(DEFINITION).format(
            baseline=quoted("; ".join(baselines)),
            alpha=criteria().alpha,
            number=len(compared),
            effect=effect,
            power=criteria().power,
        )
    )
    document.unfold()


def _curves(document: Document, found: Sequence[Contest], _: Translate, label: Translate) -> None:
    drawn = [contest for contest in found if has_curves(contest)]
    if not drawn:
        return
    document.figure("curves", curves(drawn, label), _("Validation loss by epoch"))
    left_out = [text for contest in drawn for text in _left_out(contest, MOST_CURVES, _)]
    document.text(_(CURVES_CAPTION), *left_out)


def _choices(document: Document, found: Sequence[Contest], _: Translate) -> None:
    """What labels leave out."""
    rows = [
        [quoted(name), quoted(text) or "-"]
        for contest in found
        for name, text in chosen(contest.variants).items()
    ]
    if rows:
        document.fold(_("Differences between the groups"))
        document.table([_("group"), _("chosen")], rows)
        document.unfold()
