"""The answer to "Is mine better?" for one corpus, in sentences for the terminal and the page."""

from __future__ import annotations

from collections import Counter

from newllm.reporting.formatting import bounds, signed
from newllm.reporting.translation import Translate
from newllm.statistics.comparisons import ONE_SEED, UNDECIDED, Contest, Standing
from newllm.statistics.power import MOST_SEEDS
from newllm.statistics.variants import Variant

TOLD_REFERENCES = {
    "bigram": "bigram counts give {loss}",
    "oracle": "the generating grammar {loss}",
}


def answer(contest: Contest, _: Translate) -> str:
    """The best group against the baseline, the runs without a result, and the references."""
    sentences = [_best(contest, _)]
    not_done: Counter[str] = Counter()
    for variant in contest.variants:
        not_done.update(variant.not_done)
    if not_done:
        text = _("Excluded from {total} runs: {found}; means are over the others.")
        found = ", ".join(f"{number} {_(status)}" for status, number in not_done.items())
        total = sum(len(variant.runs) for variant in contest.variants)
        sentences.append(text.format(total=total, found=found))
    references = contest.references
    told = [
        _(text).format(loss=f"{references[name]:.3f}")
        for name, text in TOLD_REFERENCES.items()
        if name in references
    ]
    if told:
        sentences.append(_("On the same sentences, {what}.").format(what=", ".join(told)))
    return " ".join(sentences)


def _best(contest: Contest, _: Translate) -> str:
    ranked, base = contest.ranked, contest.baseline
    if not ranked:
        return _("None of these runs has a result that can be compared.")
    told = ranked[0]
    if len(ranked) == 1:
        text = _(
            "{best}: best validation loss {loss} (n={n}). There is nothing to compare it with."
        )
    elif told.variant is base:
        told = ranked[1]
        text = _(
            "No group has a lower mean than {base}, {base_loss} (n={base_n}); the next is "
            "{best}, {loss} (n={n}): {difference}."
        )
    else:
        text = _(
            "{best} has the lowest mean: {loss} (n={n}), compared with {base}, {base_loss} "
            "(n={base_n}): {difference}."
        )
    own, other = told.variant.loss, base.loss
    return text.format(
        best=told.variant.label,
        loss=bounds(own),
        n=own.num_runs if own else 0,
        base=base.label,
        base_loss=bounds(other),
        base_n=other.num_runs if other else 0,
        difference=_difference(told, base, _),
    )


def _difference(standing: Standing, base: Variant, _: Translate) -> str:
    """A difference with its verdict, and the seeds that would decide what is undecided."""
    own, other = standing.variant.loss, base.loss
    if standing.verdict == ONE_SEED and own and other:
        text = _("{difference}, which is inconclusive with one seed; use at least two")
        return text.format(difference=f"{own.mean - other.mean:+.3f}")
    word = _(standing.verdict)
    if standing.difference is None:
        return word
    if needed := seeds_needed(standing, _):
        word = _("{verdict} ({needed} would decide)").format(verdict=word, needed=needed)
    return f"{signed(standing.difference)}, {word}"


def seeds_needed(standing: Standing, _: Translate) -> str:
    """The number of seeds that would decide, such as `about 12 seeds`; empty with a verdict."""
    if standing.verdict == ONE_SEED:
        return _("2 seeds or more")
    if standing.verdict != UNDECIDED:
        return ""
    fewest, most = (
        f"{n:,}" if n is not None else f"> {MOST_SEEDS:,}" for n in (standing.fewest, standing.most)
    )
    if fewest == most:
        return _("about {number} seeds").format(number=most)
    return _("{fewest} to {most} seeds").format(fewest=fewest, most=most)
