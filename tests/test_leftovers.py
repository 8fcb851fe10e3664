"""An experiment with another model: the sizes that both know, and no word of the others."""

from pathlib import Path

import pytest
from conftest import TINY, Compose

from newllm.config.composed import composed_faults
from newllm.config.leftovers import without_leftovers
from newllm.sweeps.jobs import Job
from newllm.training.experiment import build_experiment
from newllm.training.summary import print_banner


@pytest.mark.parametrize(
    ("overrides", "left_out", "kept"),
    [
        (
            ("experiment=modern", "model=lstm"),
            ["model.context_dim=128"],
            {"embedding_dim": 128, "hidden_dim": 128, "num_layers": 3},
        ),
        (
            ("experiment=modern_512", "model=transformer"),  # built on another experiment's file
            ["model.context_dim=512", "model.hidden_dim=512"],
            {"embedding_dim": 256, "num_layers": 9, "num_heads": 4},
        ),
        (
            ("experiment=fair_context_200k", "model=gru"),
            ["budget.widths.context_dim=1"],
            {},
        ),
        (("experiment=modern", "model=gated"), [], {"context_dim": 128}),
        (("experiment=modern",), [], {"context_dim": 128}),
        (("model=lstm",), [], {"hidden_dim": 256}),
    ],
)
def test_what_only_the_experiments_own_model_takes_is_left_out(
    compose_config: Compose,
    overrides: tuple[str, ...],
    left_out: list[str],
    kept: dict[str, int],
) -> None:
    config = without_leftovers(compose_config(*overrides), overrides)
    assert sorted(config.left_out) == left_out
    assert kept.items() <= config.model.items()
    assert not any(choice.partition("=")[0] in config for choice in left_out)
    assert composed_faults(compose_config(*overrides), overrides) == []


def test_what_was_chosen_by_name_is_not(compose_config: Compose) -> None:
    overrides = ("experiment=modern", "model=lstm", "model.context_dim=3")
    config = compose_config(*overrides)
    assert without_leftovers(config, overrides).left_out == []
    assert composed_faults(config, overrides) == ["model.context_dim: LSTM takes no context_dim"]


def test_a_job_of_a_sweep_is_what_is_really_built(
    compose_config: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("experiment=modern", "model=lstm", "data=tiny30", "logger=none")
    config = compose_config(*overrides, *(f"model.{size}" for size in TINY if "con" not in size))
    job = Job.plan(config, overrides, tmp_path)
    assert "context_dim" not in job.config.model
    print_banner(build_experiment(job.config, tmp_path))
    assert "model.context_dim=128 (set by the experiment; the chosen model does not take it)" in (
        capsys.readouterr().out
    )
