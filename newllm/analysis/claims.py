"""The claims of the published summary and what runs say of them; see `claims.toml`."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

from newllm.analysis.series import Run, is_of
from newllm.analysis.spikes import find_spikes
from newllm.analysis.statistics import Comparison, compare, mean_interval, plan, verdicts

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
    text = files("newllm.analysis").joinpath("claims.toml").read_text()
    return [Claim(**entry) for entry in tomllib.loads(text)["claim"]]


def _spike(run: Run) -> float:
    """Ratio of the largest spike by step; 1 without one."""
    spike = run.largest_spike("val_by_step")
    return float(spike["ratio"]) if spike else 1.0


def _known_spike(run: Run) -> float:
    """The same of what targets other than `<UNK>` contribute."""
    losses = [row["eos"] + row["other"] for row in run.looks]
    found = find_spikes([row["step"] for row in run.looks], losses)
    return max((spike.ratio for spike in found), default=1.0)


def _known_loss(run: Run) -> float:
    """Lowest validation loss of the words that training shows."""
    return min(row["val/loss_known"] for row in run.epochs)


METRICS: Mapping[str, Callable[[Run], float]] = {
    "loss": lambda run: float(run.result["best_val_loss"]),
    "loss of known words": _known_loss,
    "spike": _spike,
    "spike without <UNK>": _known_spike,
}


def _falls(run: Run) -> bool:
    losses = [row["val/loss"] for row in run.epochs]
    return all(after < before for before, after in pairwise(losses))


def _ends_at_its_best(run: Run) -> bool:
    losses = [row["val/loss"] for row in run.epochs]
    return losses[-1] <= min(losses) + plan().smallest_effects["loss"]


def _heals(run: Run) -> bool:
    found = run.result["spikes"]["val_by_step"]
    return all(spike["recovery"] is not None for spike in found)


def _is_bounded(run: Run) -> bool:
    """Normalized, C elements have the norm sqrt(C), or so much times LayerNorm's learned scale."""
    norms = [row["context/norm"] for row in run.epochs if "context/norm" in row]
    return max(norms) <= 1.5 * math.sqrt(run.result["state_bytes"] / 4)


PROPERTIES: Mapping[str, Callable[[Run], bool]] = {
    "falls in every epoch": _falls,
    "ends at its best": _ends_at_its_best,
    "has no spike": lambda run: run.largest_spike("val_by_step") is None,
    "spikes heal": _heals,
    "context is bounded": _is_bounded,
    "state is one context": lambda run: bool(run.result["state_bytes"] == 4 * 512),
}

# What a claim becomes by what the comparison of its runs says.
BY_OUTCOME = {
    "lower": {"lower": "supported", "higher": "refuted", "no effect": "no effect"},
    "higher": {"higher": "supported", "lower": "refuted", "no effect": "no effect"},
    "not lower": {"higher": "supported", "no effect": "supported", "lower": "refuted"},
    "not higher": {"lower": "supported", "no effect": "supported", "higher": "refuted"},
    "no effect": {"no effect": "supported", "lower": "refuted", "higher": "refuted"},
}


def judge(runs: Sequence[Run]) -> list[Judgement]:
    """The verdict on every claim: supported, refuted, no effect, undecided, self-contradictory.

    `not run` where a side has fewer than two runs. Holm's correction is over all comparisons.
    """
    claims = stated_claims()
    comparisons = {
        index: comparison
        for index, claim in enumerate(claims)
        if claim.kind == "comparison" and (comparison := _compare(claim, runs))
    }
    outcomes = dict(
        zip(comparisons, verdicts(list(comparisons.values()), plan().alpha), strict=True)
    )
    judgements = []
    for index, claim in enumerate(claims):
        if claim.kind == "figures":
            judgements.append(Judgement(claim, claim.verdict, claim.why))
        elif claim.kind == "property":
            judgements.append(_judge_property(claim, runs))
        elif index in outcomes:
            verdict = BY_OUTCOME[claim.claimed].get(outcomes[index], "undecided")
            judgements.append(Judgement(claim, verdict, _numbers(claim, runs, comparisons[index])))
        else:
            judgements.append(Judgement(claim, NOT_RUN, ""))
    return judgements


def _runs_of(experiment: str, runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.is_done and is_of(run, experiment)]


def _values(claim: Claim, runs: Sequence[Run]) -> tuple[list[float], list[float]]:
    second_metric = claim.second_metric or claim.metric
    return (
        [METRICS[claim.metric](run) for run in _runs_of(claim.first, runs)],
        [METRICS[second_metric](run) for run in _runs_of(claim.second, runs)],
    )


def _compare(claim: Claim, runs: Sequence[Run]) -> Comparison | None:
    first, second = _values(claim, runs)
    if min(len(first), len(second)) < 2:
        return None
    # The same runs by two metrics are pairs.
    return compare(first, second, _smallest_effect(claim), paired=claim.first == claim.second)


def _smallest_effect(claim: Claim) -> float:
    kind = "spike" if claim.metric.startswith("spike") else "loss"
    return plan().smallest_effects[kind]


def _numbers(claim: Claim, runs: Sequence[Run], comparison: Comparison) -> str:
    first, second = _values(claim, runs)
    interval = comparison.interval
    return (
        f"{mean_interval(first).mean:.3f} (n={len(first)}) against "
        f"{mean_interval(second).mean:.3f} (n={len(second)}): "
        f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
    )


def _judge_property(claim: Claim, runs: Sequence[Run]) -> Judgement:
    """Supported if it holds for all runs, refuted if for none, else undecided."""
    found = _runs_of(claim.first, runs)
    if not found:
        return Judgement(claim, NOT_RUN, "")
    holds = sum(PROPERTIES[claim.property](run) for run in found)
    verdict = {len(found): "supported", 0: "refuted"}.get(holds, "undecided")
    return Judgement(claim, verdict, f"{claim.property}: {holds} of {len(found)} runs")


def counts(judgements: Sequence[Judgement]) -> dict[str, int]:
    """How many claims have each verdict."""
    found: dict[str, Any] = {}
    for judgement in judgements:
        found[judgement.verdict] = found.get(judgement.verdict, 0) + 1
    return found
