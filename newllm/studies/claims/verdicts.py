"""Verdicts of runs on the claims of the published summary; see `claims.toml`."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise

from newllm.runs.gathering import Run
from newllm.statistics.intervals import (
    Comparison,
    compare_by_seed,
    criteria,
    mean_interval,
    verdicts,
)
from newllm.statistics.spikes import BUMP, find_spikes
from newllm.statistics.variants import start_alike

NAME = "claims"  # of the study
NOT_RUN = "not run"


@dataclass(frozen=True)
class Claim:
    """A claim as `claims.toml` states it."""

    line: int
    statement: str
    kind: str
    first: str = ""
    second: str = ""
    metric: str = "loss"
    second_metric: str = ""
    claimed: str = ""
    over: str = "seeds"
    property: str = ""
    verdict: str = ""
    why: str = ""


@dataclass(frozen=True)
class Judgement:
    """A claim, its verdict, and the numbers that it rests on."""

    claim: Claim
    verdict: str
    numbers: str


@cache
def stated_claims() -> list[Claim]:
    """All claims in the order of the file."""
    text = files(__package__).joinpath("claims.toml").read_text()
    return [Claim(**entry) for entry in tomllib.loads(text)["claim"]]


def _bump(positions: Sequence[float], losses: Sequence[float]) -> float | None:
    """The largest ratio of a peak to the level before it, for rises of 2 % or more; 1 without any.

    A threshold as high as that of a spike would make the ratio jump.
    """
    if not losses:
        return None
    found = find_spikes(positions, losses, prominence=BUMP)
    return max((bump.ratio for bump in found), default=1.0)


def _spike(run: Run) -> float | None:
    """The bump of the validation loss by step."""
    return _bump([row["step"] for row in run.looks], [row["val/loss"] for row in run.looks])


def _known_spike(run: Run) -> float | None:
    """The bump of the contribution of targets other than `<UNK>`."""
    losses = [row["eos"] + row["other"] for row in run.looks]
    return _bump([row["step"] for row in run.looks], losses)


def _context_norm(run: Run) -> float | None:
    """The largest of all epochs."""
    return max((row["context/norm"] for row in run.epochs if "context/norm" in row), default=None)


# Measures of a run; None where it lacks the data.
METRICS: Mapping[str, Callable[[Run], float | None]] = {
    "loss": lambda run: run.result.get(criteria().metric),
    "spike": _spike,
    "spike without <UNK>": _known_spike,
    "context norm": _context_norm,
}


def _falls(run: Run) -> bool:
    losses = [row["val/loss"] for row in run.epochs]
    return all(after < before for before, after in pairwise(losses))


def _ends_at_its_best(run: Run) -> bool:
    losses = [row["val/loss"] for row in run.epochs]
    return losses[-1] <= min(losses) + criteria().smallest_effects["loss"]


def _has_no_spike(run: Run) -> bool | None:
    """None without validation losses by step."""
    return run.largest_spike("val_by_step") is None if run.looks else None


def _recovers(run: Run) -> bool | None:
    """Whether the largest spike recovers; None without one."""
    spike = run.largest_spike("val_by_step")
    return None if spike is None else spike["recovery"] is not None


# Properties of a run; None where they are not known.
PROPERTIES: Mapping[str, Callable[[Run], bool | None]] = {
    "falls in every epoch": _falls,
    "ends at its best": _ends_at_its_best,
    "has no spike": _has_no_spike,
    "spikes recover": _recovers,
    "state is one context": lambda run: run.result.get("state_bytes") == 4 * 512,
}

# The verdict on a claim by the verdict of its comparison.
BY_OUTCOME = {
    "lower": {"lower": "supported", "higher": "refuted", "no effect": "no effect"},
    "higher": {"higher": "supported", "lower": "refuted", "no effect": "no effect"},
    "not lower": {"higher": "supported", "no effect": "supported", "lower": "refuted"},
    "not higher": {"lower": "supported", "no effect": "supported", "higher": "refuted"},
    "no effect": {"no effect": "supported", "lower": "refuted", "higher": "refuted"},
}


def judge(runs: Sequence[Run]) -> list[Judgement]:
    """The verdict on every claim: supported, refuted, no effect, undecided, self-contradictory.

    `not run` where a side has fewer than two runs. Holm's correction is over all comparisons by one
    kind of metric.
    """
    claims = stated_claims()
    compared = {
        claim: comparison
        for claim in claims
        if claim.kind == "comparison" and (comparison := _compared(claim, runs))
    }
    outcomes: dict[Claim, str] = {}
    for kind in criteria().smallest_effects:
        family = {claim: found for claim, found in compared.items() if _kind(claim) == kind}
        words = verdicts(list(family.values()), criteria().alpha)
        outcomes |= dict(zip(family, words, strict=True))
    judgements = []
    for claim in claims:
        if claim.kind == "figures":
            judgements.append(Judgement(claim, claim.verdict, claim.why))
        elif claim.kind == "property":
            judgements.append(_judge_property(claim, runs))
        elif claim in compared:
            verdict = BY_OUTCOME[claim.claimed].get(outcomes[claim], "undecided")
            judgements.append(Judgement(claim, verdict, _numbers(compared[claim])))
        else:
            judgements.append(Judgement(claim, NOT_RUN, ""))
    return judgements


def evidence(runs: Sequence[Run], judgements: Sequence[Judgement]) -> list[Run]:
    """The runs that verdicts rest on."""
    found = [
        run
        for judgement in judgements
        if judgement.verdict != NOT_RUN
        for name in (judgement.claim.first, judgement.claim.second)
        if name
        for run in _found(judgement.claim, name, runs)
    ]
    return list({id(run): run for run in found}.values())


def _kind(claim: Claim) -> str:
    """Which smallest effect counts, and which family a comparison belongs to."""
    return claim.metric.partition(" without")[0]


def _made_from(name: str, runs: Sequence[Run]) -> list[Run]:
    """Finished runs of an experiment of the series, or of a variant of this study."""
    known = [run for run in runs if run.is_done and run.known_as == name]
    return [run for run in known if run.study in (None, NAME)]


def _runs_of(name: str, runs: Sequence[Run]) -> list[Run]:
    """As it stands."""
    return [run for run in _made_from(name, runs) if run.is_as_named]


def _compared(claim: Claim, runs: Sequence[Run]) -> Comparison | None:
    """Both sides in pairs of one corpus, or of one seed where they start alike."""
    first_runs, second_runs = (_found(claim, name, runs) for name in (claim.first, claim.second))
    first = _by_seed(first_runs, claim.metric, claim.over)
    second = _by_seed(second_runs, claim.second_metric or claim.metric, claim.over)
    belong_together = claim.over == "corpora" or start_alike(first_runs + second_runs)
    effect = criteria().smallest_effects[_kind(claim)]
    return compare_by_seed(first, second, effect, belong_together)


def _numbers(comparison: Comparison) -> str:
    interval = comparison.interval
    pairs = " pairs" if comparison.is_paired else ""
    return (
        f"{mean_interval(comparison.first).mean:.3f} (n={len(comparison.first)}) against "
        f"{mean_interval(comparison.second).mean:.3f} (n={len(comparison.second)}{pairs}): "
        f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
    )


def _found(claim: Claim, name: str, runs: Sequence[Run]) -> list[Run]:
    """The runs of a side."""
    return (_redrawn if claim.over == "corpora" else _runs_of)(name, runs)


def _redrawn(name: str, runs: Sequence[Run]) -> list[Run]:
    """Runs of seed 1 on redrawn corpora, with no other change."""
    return [
        run
        for run in _made_from(name, runs)
        if run.choices.keys() == {"data.seed"}
        and run.choices["data.seed"].isdecimal()
        and run.result["seed"] == 1
    ]


def _by_seed(runs: Sequence[Run], metric: str, over: str) -> dict[int, float]:
    """Values by the seed of the corpus, or by that of the run."""
    values = {
        int(run.choices["data.seed"] if over == "corpora" else run.result["seed"]): METRICS[metric](
            run
        )
        for run in runs
    }
    return {seed: value for seed, value in values.items() if value is not None}


def _judge_property(claim: Claim, runs: Sequence[Run]) -> Judgement:
    """Supported if it holds for all runs, refuted if for none, else undecided."""
    answers = [PROPERTIES[claim.property](run) for run in _found(claim, claim.first, runs)]
    known = [answer for answer in answers if answer is not None]
    if not known:
        return Judgement(claim, NOT_RUN, "")
    verdict = {len(known): "supported", 0: "refuted"}.get(sum(known), "undecided")
    return Judgement(claim, verdict, f"{claim.property}: {sum(known)} of {len(known)} runs")


def counts(judgements: Sequence[Judgement]) -> dict[str, int]:
    """The number of claims with each verdict."""
    return dict(Counter(judgement.verdict for judgement in judgements))
