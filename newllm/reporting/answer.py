"""Is mine better? One corpus's answer, in sentences for the terminal and the page."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from newllm.config.naming import TRIAL, beside_variant, run_folder, split, without_seed
from newllm.reporting.formatting import signed
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run
from newllm.statistics.comparisons import ONE_SEED, UNDECIDED, Contest, Standing
from newllm.statistics.intervals import Interval, criteria
from newllm.statistics.labels import differing
from newllm.statistics.power import MOST_SEEDS
from newllm.statistics.variants import Variant

USUAL = Path("outputs/runs")  # the folder of sweeps in `conf/config.yaml`
SEEDS = 5  # to ask for where the criteria name none for a corpus
ALIKE = 1.1  # sizes no further apart need no word
MANY_SEEDS = 100  # more are asked of nobody
DECISIVE = ("lower", "higher", "no effect", UNDECIDED)
TOLD_REFERENCES = {
    "bigram": "counting pairs of words gives {loss}",
    "oracle": "the grammar that made them {loss}",
}


def bounds(interval: Interval | None) -> str:
    """Such as `1.661 [1.612, 1.710]`; the mean alone of a single run."""
    if interval is None:
        return "-"
    mean = f"{interval.mean:.3f}"
    if not math.isfinite(interval.half_width):
        return mean
    return f"{mean} [{interval.low:.3f}, {interval.high:.3f}]"


def answer(contest: Contest, references: Mapping[str, float], _: Translate) -> str:
    """The best against the baseline, how the others came out, what failed, and the references."""
    sentences = [_best(contest, _)]
    sentences += _others(contest, _)
    sentences += _missing(contest, _)
    sentences += _sizes(contest, _)
    told = [
        _(text).format(loss=f"{references[name]:.3f}")
        for name, text in TOLD_REFERENCES.items()
        if name in references
    ]
    if told:
        sentences.append(_("On the same sentences {what}.").format(what=", ".join(told)))
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
    ranked = contest.ranked
    base = contest.baseline
    if not ranked:
        return _("None of these runs has a result that can be compared.")
    best = ranked[0]
    if len(ranked) == 1:
        return _(
            "{best}: best validation loss {loss} (n={n}). There is nothing to compare it with."
        ).format(best=best.variant.label, **_figures(best.variant))
    if best.variant is base:
        second = ranked[1]
        text = _(
            "No other is lower on average than {base}, {base_loss} (n={base_n}); next is {best}, "
            "{loss} (n={n}): {difference}."
        )
        return text.format(**_compared(second, base, _))
    text = _(
        "{best} is lowest on average: {loss} (n={n}) against {base}, {base_loss} (n={base_n}): "
        "{difference}."
    )
    return text.format(**_compared(best, base, _))


def _compared(standing: Standing, base: Variant, _: Translate) -> dict[str, str]:
    base_figures = {f"base_{key}": text for key, text in _figures(base).items()}
    names = {"best": standing.variant.label, "base": base.label}
    return {
        **names,
        **_figures(standing.variant),
        **base_figures,
        "difference": _told(standing, base, _),
    }


def _figures(variant: Variant) -> dict[str, str]:
    loss = variant.loss
    return {"loss": bounds(loss), "n": str(loss.num_runs if loss else 0)}


def _told(standing: Standing, base: Variant, _: Translate) -> str:
    """A difference with its verdict."""
    if standing.difference is None:
        own, other = standing.variant.loss, base.loss
        if own is None or other is None or standing.verdict != ONE_SEED:
            return _(standing.verdict)
        text = _("{difference}, which with one seed says nothing; take at least two")
        return text.format(difference=f"{own.mean - other.mean:+.3f}")
    return f"{signed(standing.difference)}, {verdict(standing, _)}"


def verdict(standing: Standing, _: Translate) -> str:
    """The word, and how many seeds would decide what is undecided."""
    word, needed = _(standing.verdict), seeds_needed(standing, _)
    return (
        _("{verdict} ({needed} would decide)").format(verdict=word, needed=needed)
        if needed
        else word
    )


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
    text = _("Of the {number} compared with {base}: {found}.")
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
    text = _("Not counted, of {total} runs: {found}; means are over the others.")
    return [text.format(total=total, found=found)]


def more_seeds(contest: Contest) -> list[str]:
    """Commands that would decide: for all variants of one seed, else for the best undecided one.

    Empty where runs have no record of what was chosen or are trials of a search, nothing is open,
    or it takes too many.
    """
    lone = [v for v in contest.variants if v.loss and not v.is_void and v.loss.num_runs < 2]
    if len(contest.ranked) < 2:
        return []
    if lone:
        return _commands(lone, criteria().seeds.get(contest.corpus, SEEDS))
    best = next((s for s in contest.ranked if s.verdict == UNDECIDED), None)
    if best is None or best.fewest is None or best.fewest > MANY_SEEDS:
        return []
    return _commands([contest.baseline, best.variant], best.fewest)


def _commands(variants: Sequence[Variant], number: int) -> list[str]:
    """One for all variants where they differ in one choice, else one for each."""
    if any("overrides" not in v.runs[0].result or TRIAL in v.choices for v in variants):
        return []
    typed = [_typed(variant.runs[0]) for variant in variants]
    chosen = [dict(map(split, lines)) for lines in typed]
    keys = differing(chosen)
    seeds = f"seed={','.join(map(str, range(1, number + 1)))}"
    if number > 10:
        seeds = f"seed=range(1,{number + 1})"
    others = [[line for line in lines if split(line)[0] not in keys] for lines in typed]
    is_one = len(keys) == 1 and all(keys[0] in group for group in chosen)
    if is_one and all(sorted(lines) == sorted(others[0]) for lines in others):
        values = ",".join(dict.fromkeys(group[keys[0]] for group in chosen))
        return [_command([_with_value(line, keys[0], values) for line in typed[0]], seeds)]
    return [_command(lines, seeds) for lines in typed]


def _typed(run: Run) -> list[str]:
    """The overrides of a run except its seed, and the folder of its sweep if it is not `USUAL`."""
    overrides = run.result["overrides"]
    lines = [*without_seed(overrides)]
    if run.study:
        beside = without_seed(beside_variant(overrides))
        lines = [f"sweep={run.study}", f"only={run.known_as}", *beside]
    place = Path(run.place).absolute()
    top = place.parent.parent
    is_of_a_sweep = place == top / run_folder(overrides, run.result["seed"])
    if is_of_a_sweep and top != USUAL.absolute():
        own = top.relative_to(Path.cwd()) if top.is_relative_to(Path.cwd()) else top
        lines.append(f"hydra.sweep.dir={_as_value(str(own))}")
    return lines


def _as_value(text: str) -> str:
    """A text as the value of an override, in quotes if it may have a meaning for Hydra."""
    if re.fullmatch(r"[A-Za-z0-9_./-]+", text):
        return text
    return "'{}'".format(text.replace("'", r"\'"))


def _with_value(line: str, key: str, value: str) -> str:
    """An override as it was typed, with another value if it is that of the key."""
    return f"{line.partition('=')[0]}={value}" if split(line)[0] == key else line


def _command(lines: Sequence[str], seeds: str) -> str:
    return shlex.join(["python", "-m", "newllm.train", "-m", *lines, seeds])
