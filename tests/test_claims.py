"""The claims of the summary: what the file says, and verdicts on made runs."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
from records import record

from newllm.config.study_file import sweeper_of, variants_of
from newllm.reporting.translation import vocabulary
from newllm.runs.gathering import Run
from newllm.studies.claims.verdicts import (
    BY_OUTCOME,
    METRICS,
    NOT_RUN,
    PROPERTIES,
    Claim,
    counts,
    judge,
    stated_claims,
)

VERDICTS = ("supported", "refuted", "no effect", "undecided", "self-contradictory", NOT_RUN)
VARIANTS = variants_of("claims")


def make_runs(name: str, losses: Sequence[float], *beside: str, **fields: Any) -> list[Run]:
    study = "claims" if name.startswith(("isolated_", "spike_")) else None
    result = {"status": "done", "corpus": "tiny30", "parameters": 1}
    return [
        Run(
            f"runs/{name}/seed={seed}",
            result
            | {"best_val_loss": loss, **record(name, *beside, study=study, seed=seed)}
            | fields,
            epochs=[{"epoch": 1, "val/loss": loss + 1}, {"epoch": 2, "val/loss": loss}],
        )
        for seed, loss in enumerate(losses, 1)
    ]


def verdict(statement: str, runs: Sequence[Run]) -> str:
    (found,) = [j for j in judge(runs) if j.claim.statement.startswith(statement)]
    return found.verdict


@pytest.mark.parametrize("claim", stated_claims(), ids=lambda claim: str(claim.line))
def test_every_claim_can_be_tested(claim: Claim) -> None:
    assert claim.line > 0
    if claim.kind == "comparison":
        assert {claim.first, claim.second} <= VARIANTS.keys()
        assert {claim.metric, claim.second_metric or claim.metric} <= METRICS.keys()
        assert claim.claimed in BY_OUTCOME
        assert claim.over in ("seeds", "corpora")
        unused = ("property", "verdict", "why")
    elif claim.kind == "property":
        assert claim.first in VARIANTS
        assert claim.property in PROPERTIES
        unused = ("second", "claimed", "verdict", "why")
    else:
        assert claim.kind == "figures"
        assert claim.verdict in VERDICTS
        assert claim.why
        unused = ("first", "second", "claimed", "property")
    defaults = {field.name: field.default for field in fields(Claim)}
    assert all(getattr(claim, name) == defaults[name] for name in unused)


def test_the_sweep_runs_what_the_claims_need_and_no_more() -> None:
    needed = {name for claim in stated_claims() for name in (claim.first, claim.second) if name}
    assert VARIANTS.keys() == needed
    general = {name for c in stated_claims() if c.over == "corpora" for name in (c.first, c.second)}
    assert set(sweeper_of("claims")["then"]["corpora"]["only"].split(",")) == general


def test_general_claims_are_compared_corpus_by_corpus() -> None:
    def redrawn(name: str, losses: Sequence[float], seed: int = 1, **fields: Any) -> list[Run]:
        return [
            run
            for number, loss in enumerate(losses, 1)
            for run in make_runs(name, [loss], f"data.seed={number}", **fields, seed=seed)
        ]

    statement = "It does as well as that causal Transformer on newly"
    scattered = [2.0, 3.0, 4.0, 2.5]
    runs = redrawn("phase5_final_exp1", [loss + 1 for loss in scattered])
    assert verdict(statement, runs) == NOT_RUN
    runs += redrawn("isolated_transformer", scattered, parameters=2)
    assert verdict(statement, runs) == "refuted"
    # Runs on the published corpus decide on the claim about it, and on no other.
    assert verdict(statement, make_runs("phase5_final_exp1", scattered) + runs) == "refuted"
    assert verdict("With such data", runs) == NOT_RUN
    # What only one of both was run on, and runs of another seed, tell nothing.
    alone = redrawn("phase5_final_exp1", [*scattered, 9.0])[-1:]
    of_seed_2 = redrawn("phase5_final_exp1", [9.0] * 4, seed=2)
    published = make_runs("phase5_final_exp1", [9.0], "data.seed=null")
    assert judge([*runs, *alone, *of_seed_2, *published]) == judge(runs)


def test_without_runs_only_figures_decide() -> None:
    for judgement in judge([]):
        is_decided = judgement.claim.kind == "figures"
        assert (judgement.verdict != NOT_RUN) == is_decided
    assert counts(judge([]))[NOT_RUN] == sum(c.kind != "figures" for c in stated_claims())


@pytest.mark.parametrize(
    ("shift", "lower", "higher", "not_lower"),
    [
        (-1.0, "supported", "refuted", "refuted"),
        (+1.0, "refuted", "supported", "supported"),
        (0.0, "no effect", "no effect", "supported"),
    ],
)
def test_verdicts_follow_from_differences(
    shift: float, lower: str, higher: str, not_lower: str
) -> None:
    base = [5.0, 5.01, 4.99, 5.005]
    shifted = [loss + shift for loss in base]

    def of(statement: str, first: str, second: str) -> str:
        runs = make_runs(first, shifted) + make_runs(second, base)
        return verdict(statement, runs)

    assert of("LayerNorm improves", "phase2_layernorm", "phase1_context512") == lower
    assert of("Gates make it worse", "phase3_gating", "phase2_layernorm") == higher
    assert of("The size of the context", "phase1_context512", "phase1_baseline") == not_lower


def test_scattered_runs_stay_undecided() -> None:
    runs = make_runs("phase2_layernorm", [5.0, 6.0, 5.5], parameters=2)
    runs += make_runs("phase1_context512", [5.2, 5.9, 5.6])
    assert verdict("LayerNorm improves", runs) == "undecided"


def test_runs_that_start_alike_are_compared_seed_by_seed() -> None:
    scattered = [5.0, 6.0, 5.5, 7.0]
    runs = make_runs("phase5_context_clipping_exp1", scattered)
    runs += make_runs("phase5_baseline_exp1", scattered)
    assert verdict("With LayerNorm, clamping", runs) == "supported"
    # Of other sizes, they have nothing in common but the number.
    runs = make_runs("phase5_context_clipping_exp1", scattered)
    runs += make_runs("phase5_baseline_exp1", scattered, parameters=2)
    assert verdict("With LayerNorm, clamping", runs) == "undecided"


def test_a_property_of_all_some_and_no_runs() -> None:
    falling = make_runs("phase5_final_exp1", [3.0, 3.1])
    assert verdict("The final run's validation loss falls", falling) == "supported"
    rising = [
        Run(run.place, run.result, epochs=list(reversed(run.epochs)))
        for run in make_runs("phase5_final_exp1", [3.0, 3.1])
    ]
    assert verdict("The final run's validation loss falls", rising) == "refuted"
    assert verdict("The final run's validation loss falls", [falling[0], rising[1]]) == "undecided"
    # A run without spikes does not tell whether spikes heal.
    assert verdict("Spikes recover", make_runs("phase1_baseline", [5.0, 5.1])) == NOT_RUN


def test_runs_that_lack_a_metric_are_left_out() -> None:
    runs = make_runs("phase1_wide", [5.0, 5.1]) + make_runs("phase1_context512", [5.0, 5.1])
    assert verdict("Spikes are worse for larger models", runs) == NOT_RUN


@pytest.mark.parametrize("lang", ["ja"])
def test_all_is_said_in_each_language(lang: str) -> None:
    said = {*VERDICTS, *(claim.statement for claim in stated_claims())}
    assert said - vocabulary(lang).keys() == set()
