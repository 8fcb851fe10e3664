"""An experiment with another model: the sizes that both know, and no word of the others."""

from pathlib import Path

import pytest
from conftest import TINY, Compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from newllm.config.composed import composed_faults
from newllm.config.composing import conf_directory
from newllm.config.overrides import Composer
from newllm.config.settling import settled
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
            ("experiment=modern", "model=transformer"),
            ["model.context_dim=128", "model.hidden_dim=128"],
            {"embedding_dim": 128, "num_layers": 3, "num_heads": 4},
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
    config = settled(compose_config(*overrides), overrides)
    assert sorted(config.left_out) == left_out
    assert kept.items() <= config.model.items()
    assert not any(choice.partition("=")[0] in config for choice in left_out)
    assert composed_faults(compose_config(*overrides), overrides) == []


def test_what_was_chosen_by_name_is_not(compose_config: Compose) -> None:
    overrides = ("experiment=modern", "model=lstm", "model.context_dim=3")
    config = compose_config(*overrides)
    assert settled(config, overrides).left_out == []
    assert composed_faults(config, overrides) == ["model.context_dim: LSTM takes no context_dim"]


def test_a_job_of_a_sweep_is_what_is_really_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("experiment=modern", "model=lstm", "data=tiny30", "logger=none")
    sizes = [f"model.{size}" for size in TINY if "con" not in size]
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        config = Composer(GlobalHydra.instance().config_loader()).job([*overrides, *sizes])
    assert "context_dim" not in config.model
    print_banner(build_experiment(config, tmp_path))
    assert (
        "model.context_dim=128 (set by the experiment, but not accepted by the chosen model)"
    ) in (capsys.readouterr().out)
