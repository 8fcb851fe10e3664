"""The ladder from the original to the modern recipe: effects and their signs."""

import pytest
from records import record

from newllm.reporting.translation import vocabulary
from newllm.runs.gathering import Run
from newllm.studies.ladder import RUNGS, changes, climb, ends, own_runs


def make_runs(name: str, *losses: float, study: str | None = "ladder") -> list[Run]:
    return [
        Run(
            f"runs/{name}/seed={seed}",
            {"status": "done", "best_val_loss": loss, **record(name, study=study, seed=seed)},
        )
        for seed, loss in enumerate(losses, 1)
    ]


def test_below_zero_the_change_helps_on_both_sides() -> None:
    runs = (
        make_runs("original", 3.0, 3.1)
        + make_runs("modern", 1.7, 1.72, study=None)
        + make_runs("add_dropout", 2.5, 2.6)
        + make_runs("remove_dropout", 1.9, 1.92)
        + make_runs("add_size", 3.3)
    )
    rungs = {rung.name: rung for rung in climb(runs)}
    dropout = rungs["dropout"]
    assert dropout.effect_added is not None
    assert dropout.effect_removed is not None
    assert dropout.effect_added.mean == pytest.approx(-0.5)
    assert dropout.effect_removed.mean == pytest.approx(-0.2)
    size = rungs["size"]
    assert size.added is not None
    assert (size.added.mean, size.effect_added, size.removed) == (3.3, None, None)
    original, modern = ends(runs)
    assert original is not None
    assert modern is not None
    assert (original.mean, modern.mean) == pytest.approx((3.05, 1.71))


def test_the_modern_recipe_has_a_place_of_its_own() -> None:
    rungs = make_runs("add_dropout", 2.5) + make_runs("original", 3.0)
    others = make_runs("modern", 1.7, study=None) + make_runs("modern_512", 1.7)
    assert {id(run) for run in own_runs([*rungs, *others])} == {id(run) for run in rungs}


@pytest.mark.parametrize("lang", ["ja"])
def test_rungs_have_a_name_in_each_language(lang: str) -> None:
    assert {RUNGS[name] for name in changes()} <= vocabulary(lang).keys()
