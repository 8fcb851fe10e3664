"""The ladder from the original to the modern recipe: effects and their signs."""

import pytest
from newllm.studies.ladder.effects import RUNGS, climb, ends
from omegaconf import OmegaConf

from newllm.config.composing import conf_directory
from newllm.reporting.translation import LANGUAGES, translator
from newllm.runs.gathering import Run


def make_runs(experiment: str, *losses: float) -> list[Run]:
    return [
        Run(
            f"runs/{experiment}/seed={seed}",
            {"status": "done", "experiment": experiment, "seed": seed, "best_val_loss": loss},
        )
        for seed, loss in enumerate(losses, 1)
    ]


def test_below_zero_the_change_helps_on_both_sides() -> None:
    runs = (
        make_runs("ladder_original", 3.0, 3.1)
        + make_runs("modern", 1.7, 1.72)
        + make_runs("ladder_add_dropout", 2.5, 2.6)
        + make_runs("ladder_remove_dropout", 1.9, 1.92)
        + make_runs("ladder_add_size", 3.3)
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


def test_the_sweep_runs_every_rung() -> None:
    node = OmegaConf.load(conf_directory() / "sweep" / "ladder.yaml")
    swept = {word.strip() for word in node.hydra.sweeper.params.experiment.split(",")}
    # The original shuffles as it is.
    added = {f"ladder_add_{name}" for name in RUNGS if name != "batching"}
    removed = {f"ladder_remove_{name}" for name in RUNGS}
    assert swept == {"ladder_original", "modern"} | added | removed


@pytest.mark.parametrize("lang", LANGUAGES)
def test_rungs_have_a_name_in_each_language(lang: str) -> None:
    assert all(map(translator(lang), RUNGS.values()))
