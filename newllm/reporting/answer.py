"""Is mine better? One corpus's answer, in sentences for the terminal and the page."""

from __future__ import annotations

from collections import Counter

from newllm.config.naming import TRIAL
from newllm.reporting.formatting import bounds, signed
from newllm.reporting.translation import Translate
from newllm.statistics.comparisons import ONE_SEED, UNDECIDED, Contest, Standing
from newllm.statistics.intervals import criteria
from newllm.statistics.power import MOST_SEEDS
from newllm.statistics.variants import Variant

SEEDS = 5  # to ask for where the criteria name none for a corpus
ALIKE = 1.1  # sizes no further apart need no word
MANY_SEEDS = 100  # more are asked of nobody
LONE = (
    "Run the same sweep with {seeds} to decide between groups with one seed; completed runs "
    "are kept."
)
OPEN = "To decide between {best} and {base}, run both with {seeds}; completed runs are kept."
DECISIVE = ("lower", "higher", "no effect", UNDECIDED)
TOLD_REFERENCES = {
    "bigram": "bigram counts give {loss}",
    "oracle": "the generating grammar {loss}",
}


def answer(contest: Contest, _: Translate) -> str:
    """The best against the baseline, the others, what failed, the references, what would decide."""
    sentences = [_best(contest, _)]
    sentences += _others(contest, _)
    sentences += _missing(contest, _)
    sentences += _sizes(contest, _)
    references = contest.references
    told = [
        _(text).format(loss=f"{references[name]:.3f}")
        for name, text in TOLD_REFERENCES.items()
        if name in references
    ]
    if told:
        sentences.append(_("On the same sentences, {what}.").format(what=", ".join(told)))
    sentences += _more_seeds(contest, _)
    return " ".join(sentences)


def _sizes(contest: Contest, _: Translate) -> list[str]:
    """That the groups are not of one size, where they are not."""
    sizes = {
        int(run.result["parameters"])
        for standing in contest.ranked
        for run in standing.variant.runs
        if "parameters" in run.result
    }
    if not sizes or max(sizes) <= ALIKE * min(sizes):
        return []
    text = _("They have between {least:,} and {most:,} parameters.")
    return [text.format(least=min(sizes), most=max(sizes))]


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
        difference=_told(told, base, _),
    )


def _told(standing: Standing, base: Variant, _: Translate) -> str:
    """A difference with its verdict, and how many seeds would decide what is undecided."""
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
    """How many would decide, such as `about 12 seeds`; nothing where there is a verdict."""
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


def _others(contest: Contest, _: Translate) -> list[str]:
    """How many of all came out how, where there are several."""
    words = Counter(s.verdict for s in contest.standings if s.verdict in DECISIVE)
    if sum(words.values()) < 2:
        return []
    found = ", ".join(f"{words[word]} {_(word)}" for word in DECISIVE if words[word])
    text = _("Of {number} groups compared with {base}: {found}.")
    return [text.format(number=sum(words.values()), base=contest.baseline.label, found=found)]


def _missing(contest: Contest, _: Translate) -> list[str]:
    """What has no loss."""
    statuses: Counter[str] = Counter()
    for variant in contest.variants:
        statuses.update(variant.not_done)
    if not statuses:
        return []
    total = sum(len(variant.runs) for variant in contest.variants)
    found = ", ".join(f"{number} {_(status)}" for status, number in statuses.items())
    text = _("Excluded from {total} runs: {found}; means are over the others.")
    return [text.format(total=total, found=found)]


def _more_seeds(contest: Contest, _: Translate) -> list[str]:
    """What to run: more seeds of all groups with one, else of the best that is undecided.

    Nothing for the trials of a search, or where it takes too many.
    """
    if len(contest.ranked) < 2 or any(TRIAL in variant.choices for variant in contest.variants):
        return []
    if any(standing.verdict == ONE_SEED for standing in contest.ranked):
        return [_(LONE).format(seeds=_seeds(criteria().seeds.get(contest.corpus, SEEDS)))]
    best = next((s for s in contest.ranked if s.verdict == UNDECIDED), None)
    if best is None or best.fewest is None or best.fewest > MANY_SEEDS:
        return []
    names = {"best": best.variant.label, "base": contest.baseline.label}
    return [_(OPEN).format(seeds=_seeds(best.fewest), **names)]


def _seeds(number: int) -> str:
    """Seeds from 1 on, as they are typed."""
    if number > 10:
        return f"'seed=range(1,{number + 1})'"
    return f"seed={','.join(map(str, range(1, number + 1)))}"
