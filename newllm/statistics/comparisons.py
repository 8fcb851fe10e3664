"""Variants of one corpus against a baseline: differences, verdicts, seeds that would decide.

Losses are best validation losses, means over tokens, in nats. They are compared by the rules of
`criteria.toml`: in pairs of one seed, which read the same batches, else as two groups; Holm's
correction is over all comparisons that are made together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from newllm.runs.gathering import Run
from newllm.statistics.intervals import Interval, criteria, verdicts
from newllm.statistics.labels import choices_of, labels
from newllm.statistics.pairing import Sides, compare_sides
from newllm.statistics.power import Scatter, seeds_to_decide, seeds_to_see
from newllm.statistics.variants import Variant, grouped, labelled

REFERENCES = ("unigram", "bigram", "trigram", "oracle")  # what losses are set beside
UNDECIDED = "undecided"
# Verdicts of variants that no comparison was made of.
BASELINE, VOID, NO_RUN, ONE_SEED = "baseline", "void: sees the future", "no run", "one seed"


@dataclass(frozen=True)
class Standing:
    """A variant against the baseline of its corpus.

    Attributes:
        variant: of the same corpus.
        sides: what was compared, variant minus baseline; None with fewer than two seeds a side.
        verdict: `lower`, `higher`, `no effect`, `undecided`, or why there is none.
        fewest: seeds that would decide, if undecided and the difference is as large as it looks;
            None for more than can be asked of anyone.
        most: the same whatever the difference is.
    """

    variant: Variant
    sides: Sides | None = None
    verdict: str = ""
    fewest: int | None = None
    most: int | None = None

    @property
    def difference(self) -> Interval | None:
        return self.sides.comparison.interval if self.sides else None


@dataclass(frozen=True)
class Contest:
    """All variants whose losses can be compared, since they are of the same validation targets."""

    corpus: str
    baseline: Variant
    standings: list[Standing] = field(default_factory=list)

    @property
    def variants(self) -> list[Variant]:
        return [standing.variant for standing in self.standings]

    @property
    def ranked(self) -> list[Standing]:
        """Those that have a loss and do not see the future, the lowest mean first."""
        return [s for s in sorted(self.standings, key=_rank) if _rank(s) < math.inf]

    @property
    def ordered(self) -> list[Standing]:
        """The baseline, the others by their mean, then those whose losses do not count."""
        return sorted(self.standings, key=lambda s: (s.variant is not self.baseline, _rank(s)))

    @property
    def references(self) -> dict[str, float]:
        """Losses of `REFERENCES`, those that all variants with a loss have in common."""
        tables = [v.first("references") or {} for v in self.variants if v.loss]
        return {
            name: tables[0][name]
            for name in REFERENCES
            if tables and all(table.get(name) == tables[0].get(name, math.nan) for table in tables)
        }

    def foremost(self, number: int) -> list[Standing]:
        """The first of `ordered`, as many as asked for, of those that have a loss."""
        return [standing for standing in self.ordered if standing.variant.loss][:number]


def _rank(standing: Standing) -> float:
    """The mean loss; infinite where it does not count."""
    variant = standing.variant
    return variant.loss.mean if variant.loss and not variant.is_void else math.inf


def contests(runs: Sequence[Run], baseline: str | None = None) -> list[Contest]:
    """A contest for each corpus.

    Args:
        runs: of any variants.
        baseline: a label, experiment, name, all choices, or part of a label; else the first
            variant of each corpus that has a result.

    Raises:
        ValueError: no variant is called so, or several are.
    """
    corpora: dict[Hashable, list[list[Run]]] = {}
    for group in grouped(runs):
        corpora.setdefault(_targets(group), []).append(group)
    if len(corpora) == 2 and None in corpora:  # failed before they knew their corpus
        (only,) = (groups for key, groups in corpora.items() if key is not None)
        only += corpora.pop(None)
    found = []
    for name, groups in zip(_names(list(corpora.values())), corpora.values(), strict=True):
        members = labelled(groups)
        found.append(Contest(name, _first(members), [Standing(member) for member in members]))
    if baseline is not None:
        found = _with_baseline(found, baseline)
    return _judged(found)


def _targets(group: Sequence[Run]) -> Hashable:
    """What validation losses of the same targets share; None for runs that never got so far."""
    run = next((run for run in group if run.result.get("data_sha256")), None)
    if run is None:
        return None
    result, references = run.result, run.result.get("references") or {}
    # Other training sentences make other data, but not another split with an oracle of its own.
    oracle = references.get("oracle")
    split = result["data_sha256"] if oracle is None else f"{result.get('corpus')} {oracle:.9f}"
    uniform = references.get("uniform")  # of another vocabulary, if it differs
    return split, None if uniform is None else round(uniform, 9)


def _names(corpora: Sequence[Sequence[Sequence[Run]]]) -> list[str]:
    """Of each corpus, with the choices of data in which those of one name differ."""
    first = [groups[0][0] for groups in corpora]
    names = [str(run.result.get("corpus") or "-") for run in first]
    repeated = {name for name, number in Counter(names).items() if number > 1}
    chosen = [{k: v for k, v in choices_of(run).items() if k.startswith("data.")} for run in first]
    for name in repeated:
        own = [index for index, other in enumerate(names) if other == name]
        texts = labels([chosen[index] for index in own], [[] for _ in own])
        for index, text in zip(own, texts, strict=True):
            names[index] = name if text == "default" else f"{name}, {text}"
    return names


def _first(members: Sequence[Variant]) -> Variant:
    """The first that can be compared with."""
    usable = [member for member in members if member.loss and not member.is_void]
    return (usable or list(members))[0]


def _with_baseline(found: Sequence[Contest], name: str) -> list[Contest]:
    """The same with the named baseline wherever a corpus has it."""
    chosen = {id(contest): _matching(contest.variants, name) for contest in found}
    for contest in found:
        if len(several := chosen[id(contest)]) > 1:
            several_names = ", ".join(f"'{member.label}'" for member in several)
            raise ValueError(f"--baseline {name}: could be any of {several_names}")
    if not any(chosen.values()):
        known = dict.fromkeys(f"'{v.label}'" for contest in found for v in contest.variants)
        raise ValueError(f"--baseline {name}: no such group; there are {', '.join(known)}")
    return [replace(c, baseline=chosen[id(c)][0]) if chosen[id(c)] else c for c in found]


def _matching(members: Sequence[Variant], name: str) -> list[Variant]:
    """Those called so, by the first of these ways that finds any."""
    words = set(name.split())
    ways = (
        lambda member: member.label == name,
        lambda member: member.first("experiment") == name,
        lambda member: member.first("name") == name,
        lambda member: words == set(member.full_name.split()),
        lambda member: words <= {*member.label.split(), *_words(member.choices)},
        lambda member: name in member.label,
    )
    return next((found for way in ways if (found := [m for m in members if way(m)])), [])


def _words(chosen: Mapping[str, str]) -> Iterator[str]:
    """All ways to name a choice: `model.hidden_dim=8`, `hidden_dim=8`, `8`."""
    for key, value in chosen.items():
        yield from (f"{key}={value}", f"{key.rpartition('.')[2]}={value}", value)


def _judged(found: Sequence[Contest]) -> list[Contest]:
    """With differences and verdicts; all comparisons are one family."""
    compared = [
        [replace(standing, sides=_sides(standing.variant, contest.baseline))
         for standing in contest.standings]
        for contest in found
    ]  # fmt: skip
    family = [s.sides for standings in compared for s in standings if s.sides]
    words = iter(verdicts([sides.comparison for sides in family], criteria().alpha))
    judged = []
    for contest, standings in zip(found, compared, strict=True):
        own = [
            _decided(s, next(words), len(family)) if s.sides else _unjudged(s, contest.baseline)
            for s in standings
        ]
        judged.append(replace(contest, standings=own))
    return judged


def _sides(variant: Variant, baseline: Variant) -> Sides | None:
    if variant is baseline or variant.is_void or baseline.is_void:
        return None
    data = {run.result.get("data_sha256") for run in (*variant.done, *baseline.done)}
    metric, effect = criteria().metric, criteria().smallest_effects["loss"]
    return compare_sides(variant.by_seed(metric), baseline.by_seed(metric), effect, len(data) == 1)


def _unjudged(standing: Standing, baseline: Variant) -> Standing:
    if standing.variant is baseline:
        return replace(standing, verdict=BASELINE)
    if standing.variant.is_void:
        return replace(standing, verdict=VOID)
    return replace(standing, verdict=ONE_SEED if standing.variant.loss else NO_RUN)


def _decided(standing: Standing, verdict: str, family: int) -> Standing:
    """With the verdict, and the seeds that it takes at the strictest step of Holm's correction."""
    if verdict != UNDECIDED or standing.sides is None:
        return replace(standing, verdict=verdict)
    sides, interval = standing.sides, standing.sides.comparison.interval
    variance = (
        float(np.var(np.subtract(sides.first, sides.second), ddof=1))
        if sides.is_paired
        else float(np.var(sides.first, ddof=1) + np.var(sides.second, ddof=1))
    )
    effect, alpha = criteria().smallest_effects["loss"], criteria().alpha / family
    scatter = Scatter(variance, sides.is_paired)
    more = interval.num_runs + 1  # what these seeds left open, as many again do
    most = seeds_to_decide(scatter, effect, alpha, criteria().power, at_least=more)
    looks = abs(interval.mean)
    fewest = (
        seeds_to_see(scatter, looks, alpha, criteria().power, at_least=more)
        if looks > effect
        else most
    )
    return replace(standing, verdict=verdict, fewest=fewest, most=most)
