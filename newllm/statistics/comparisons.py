"""Variants of one corpus against a baseline: differences, verdicts, seeds that would decide.

Losses are best validation losses, means over tokens, in nats. They are compared by the rules of
`criteria.toml`: in pairs of one seed, which read the same batches, else as two groups. Holm's
correction is over all comparisons that are made together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from newllm.runs.gathering import Run
from newllm.statistics.intervals import Comparison, Interval, compare_by_seed, criteria, verdicts
from newllm.statistics.labels import choices_of, labels, numbered
from newllm.statistics.power import Scatter, seeds_to_decide, seeds_to_see
from newllm.statistics.variants import Variant, grouped, labelled

REFERENCES = ("unigram", "bigram", "trigram", "oracle")
UNDECIDED = "undecided"
# Verdicts where no comparison was made.
BASELINE, VOID, NO_RUN, ONE_SEED = "baseline", "void: sees the future", "no run", "one seed"


@dataclass(frozen=True)
class Standing:
    """A variant against the baseline of its corpus.

    Attributes:
        variant: of the same corpus.
        comparison: variant minus baseline; None with fewer than two seeds on a side.
        verdict: `lower`, `higher`, `no effect`, `undecided`, or why there is none.
        fewest: seeds that would decide, if undecided and the difference is as large as it looks;
            None for more than `MOST_SEEDS`.
        most: seeds that would decide, whatever the difference is.
    """

    variant: Variant
    comparison: Comparison | None
    verdict: str
    fewest: int | None = None
    most: int | None = None

    @property
    def difference(self) -> Interval | None:
        return self.comparison.interval if self.comparison else None


@dataclass(frozen=True)
class Contest:
    """All variants whose losses are of the same validation targets, and so can be compared."""

    corpus: str
    baseline: Variant
    standings: list[Standing]

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
        """The losses of `REFERENCES` that all variants with a loss have in common."""
        tables = [v.first("references") or {} for v in self.variants if v.loss]
        shared = dict(set.intersection(*(set(table.items()) for table in tables))) if tables else {}
        return {name: shared[name] for name in REFERENCES if name in shared}

    def foremost(self, number: int) -> list[Standing]:
        """The first of `ordered` that have a loss."""
        return [standing for standing in self.ordered if standing.variant.loss][:number]


def _rank(standing: Standing) -> float:
    """The mean loss; infinite where it does not count."""
    variant = standing.variant
    return variant.loss.mean if variant.loss and not variant.is_void else math.inf


def contests(runs: Sequence[Run], baseline: str | None = None) -> list[Contest]:
    """A contest for each corpus.

    Args:
        runs: of any variants.
        baseline: a label, experiment, name, or some choices; else the first variant of each corpus
            that has a result.

    Raises:
        ValueError: no variant, or more than one, has this name.
    """
    corpora: dict[Hashable, list[list[Run]]] = {}
    for group in grouped(runs):
        corpora.setdefault(_targets(group), []).append(group)
    if len(corpora) == 2 and None in corpora:  # failed before their corpus was known
        (only,) = (groups for key, groups in corpora.items() if key is not None)
        only += corpora.pop(None)
    names = _names([groups[0][0] for groups in corpora.values()])
    members = [labelled(groups) for groups in corpora.values()]
    baselines = _baselines(members, baseline)
    compared = [
        [(variant, _compared(variant, base)) for variant in own]
        for own, base in zip(members, baselines, strict=True)
    ]
    family = [comparison for own in compared for _, comparison in own if comparison]
    words = iter(verdicts(family, criteria().alpha))
    return [
        Contest(
            name,
            base,
            [
                _decided(variant, comparison, next(words), len(family))
                if comparison
                else Standing(variant, None, _why_not_compared(variant, base))
                for variant, comparison in own
            ],
        )
        for name, base, own in zip(names, baselines, compared, strict=True)
    ]


def _targets(group: Sequence[Run]) -> Hashable:
    """A key that is equal for the same validation targets; None where they are not known."""
    run = next((run for run in group if run.result.get("corpus")), None)
    if run is None:
        return None
    result, references = run.result, run.result.get("references") or {}
    if not result.get("data_sha256"):  # generated; the same seed may have drawn other rows
        levels = ((name, round(loss, 9)) for name, loss in references.items())
        return result["corpus"], tuple(sorted(levels))
    # Other training sentences change the data, but not the validation split and its oracle.
    oracle = references.get("oracle")
    split = result["data_sha256"] if oracle is None else f"{result.get('corpus')} {oracle:.9f}"
    uniform = references.get("uniform")  # tells vocabularies apart
    return split, None if uniform is None else round(uniform, 9)


def _names(runs: Sequence[Run]) -> list[str]:
    """The corpus of each run; corpora of one name with their choices of data."""
    names = [str(run.result.get("corpus") or "-") for run in runs]
    choices = [
        {key: value for key, value in choices_of(run).items() if key.startswith("data.")}
        for run in runs
    ]
    texts = labels(choices, [[] for _ in runs])
    return numbered(
        name if names.count(name) == 1 or text.startswith("default") else f"{name}, {text}"
        for name, text in zip(names, texts, strict=True)
    )


def _baselines(members: Sequence[Sequence[Variant]], name: str | None) -> list[Variant]:
    """The baseline of each corpus: the named one, else the first that can be compared with."""
    usual = [next((v for v in own if v.loss and not v.is_void), own[0]) for own in members]
    if name is None:
        return usual
    named = [_matching(own, name) for own in members]
    for several in named:
        if len(several) > 1:
            texts = ", ".join(f"'{variant.label}'" for variant in several)
            raise ValueError(f"--baseline {name}: could be any of {texts}")
    if not any(named):
        known = dict.fromkeys(f"'{variant.label}'" for own in members for variant in own)
        raise ValueError(f"--baseline {name}: no such group; there are {', '.join(known)}")
    return [own[0] if own else first for own, first in zip(named, usual, strict=True)]


def _matching(members: Sequence[Variant], name: str) -> list[Variant]:
    """The variants of a name, by the first of these ways that finds any."""
    words = set(name.split())
    ways = (
        lambda variant: variant.label == name,
        lambda variant: variant.first("experiment") == name,
        lambda variant: variant.first("name") == name,
        lambda variant: variant.full_name == name,
        lambda variant: words <= {*variant.label.split(), *variant.full_name.split()},
    )
    return next((found for way in ways if (found := [m for m in members if way(m)])), [])


def _compared(variant: Variant, baseline: Variant) -> Comparison | None:
    if variant is baseline or variant.is_void or baseline.is_void:
        return None
    data = {run.result.get("data_sha256") for run in (*variant.done, *baseline.done)}
    metric, effect = criteria().metric, criteria().smallest_effects["loss"]
    return compare_by_seed(
        variant.by_seed(metric), baseline.by_seed(metric), effect, belong_together=len(data) == 1
    )


def _why_not_compared(variant: Variant, baseline: Variant) -> str:
    if variant is baseline:
        return BASELINE
    if variant.is_void:
        return VOID
    return ONE_SEED if variant.loss else NO_RUN


def _decided(variant: Variant, comparison: Comparison, verdict: str, family: int) -> Standing:
    """With the seeds that decide at the strictest step of Holm's correction, if undecided."""
    if verdict != UNDECIDED:
        return Standing(variant, comparison, verdict)
    first, second = comparison.first, comparison.second
    variance = (
        np.var(np.subtract(first, second), ddof=1)
        if comparison.is_paired
        else np.var(first, ddof=1) + np.var(second, ddof=1)
    )
    scatter = Scatter(float(variance), comparison.is_paired)
    effect, looks = criteria().smallest_effects["loss"], abs(comparison.interval.mean)
    rules = criteria().alpha / family, criteria().power, comparison.interval.num_runs + 1
    most = seeds_to_decide(scatter, effect, *rules)
    fewest = seeds_to_see(scatter, looks, *rules) if looks > effect else most
    return Standing(variant, comparison, verdict, fewest, most)
