"""The page of groups of runs: whether one is better, by how much, and what would decide it."""

from __future__ import annotations

from collections.abc import Sequence

from newllm.reporting.answer import answer
from newllm.reporting.document import Document, quoted
from newllm.reporting.tables import comparison, costs, references_table, runs_table
from newllm.reporting.translation import Translate
from newllm.reporting.variant_figures import MOST_CURVES, MOST_ROWS, curves, forest, has_curves
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
    """For each corpus an answer, a figure and two tables; then curves and single runs."""
    if len(found) > 1:
        document.text(
            _("Losses on different corpora cannot be compared, so each corpus has its own section.")
        )
    for index, contest in enumerate(found, 1):
        if len(found) > 1:
            document.text(f"## {quoted(contest.corpus)}")
        document.text(f"**{quoted(answer(contest, _))}**")
        if len(contest.foremost(MOST_ROWS)) > 1:
            name = "comparison" if len(found) == 1 else f"comparison{index}"
            document.figure(name, forest(contest, label), _(FOREST_CAPTION))
            document.text(_(FOREST_CAPTION), *_left_out(contest, MOST_ROWS, _))
        for headings, rows in (comparison(contest, _), costs(contest)):
            # Only the cells of the first column may be broken into lines.
            document.table(
                [_(word) for word in headings],
                [
                    [quoted(first), *(quoted(cell).replace(" ", "&nbsp;") for cell in others)]
                    for first, *others in rows
                ],
            )
    _rules(document, found, _)
    if drawn := [contest for contest in found if has_curves(contest)]:
        document.figure("curves", curves(drawn, label), _("Validation loss by epoch"))
        left_out = [text for contest in drawn for text in _left_out(contest, MOST_CURVES, _)]
        document.text(_(CURVES_CAPTION), *left_out)
    document.fold(f"{_('All runs')} ({len(runs)})")
    names = {id(run): v.label for contest in found for v in contest.variants for run in v.runs}
    runs_table(document, runs, _, names)
    references_table(document, runs, _)
    document.unfold()


def _left_out(contest: Contest, most: int, _: Translate) -> list[str]:
    """The groups that a figure of at most so many leaves out."""
    missing = contest.foremost(len(contest.standings))[most:]
    if not missing:
        return []
    text = _("The figure shows the baseline and the {number} lowest means. Not shown: {names}.")
    names = quoted("; ".join(standing.variant.label for standing in missing))
    return [text.format(number=most - 1, names=names)]


def _rules(document: Document, found: Sequence[Contest], _: Translate) -> None:
    """The rules of the comparison in short, and in full in a folded part."""
    compared = [s.comparison for contest in found for s in contest.standings if s.comparison]
    if not compared:
        return
    effect = criteria().smallest_effects["loss"]
    how = _(PAIRED if all(comparison.is_paired for comparison in compared) else MIXED)
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
