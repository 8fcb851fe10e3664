"""Each precision trains as it says, or is refused before the start."""

from pathlib import Path

import pytest
import torch
from conftest import Compose

from newllm.config.build import ConfigFault
from newllm.config.precision import precision_name
from newllm.training.experiment import Experiment, build_experiment
from newllm.training.run import train
from newllm.training.summary import print_banner

MODELS = (
    *("context", "gated", "lstm", "gru", "elman", "mingru", "transformer"),
    *("linear_delta", "local_hybrid", "context_attention"),
)
SMALL = ("data=tiny30", "callbacks=none", "logger=none", "recipe=modern", "recipe.max_epochs=2")
SIZES = {
    "context": ("context_dim=16", "hidden_dim=16"),
    "transformer": ("num_heads=2", "feedforward_dim=16"),
}


def overrides(model: str, *more: str) -> list[str]:
    sizes = SIZES.get("context" if model == "gated" else model, ("hidden_dim=16",))
    own = [f"model.{size}" for size in ("embedding_dim=8", "num_layers=2", *sizes)]
    # Another precision may draw other dropout masks.
    return [*SMALL, f"model={model}", *own, "recipe.dropout=0", "recipe.embedding_dropout=0",
            "recipe.output_dropout=0", *more]  # fmt: skip


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
@pytest.mark.parametrize(
    ("model", "recurrence"),
    [
        *((model, ()) for model in MODELS),
        ("gated", ("recurrence=reference",)),
        ("gated", ("model.recompute=true",)),
        ("context", ("model.recompute=true", "recurrence=reference")),
    ],
)
def test_a_run_ends_near_that_of_float32(
    compose_config: Compose,
    tmp_path: Path,
    model: str,
    recurrence: tuple[str, ...],
    precision: str,
) -> None:
    losses = []
    for name in ("32-true", precision):
        choices = overrides(model, *recurrence, f"trainer.precision={name}")
        result = train(compose_config(*choices), tmp_path / name, choices)
        losses.append([result[key] for key in ("best_val_loss", "test_loss")])
    # Where keys become unit vectors, those that were small keep the rounding of bfloat16.
    of_bfloat16 = 2e-2 if model == "linear_delta" else 2e-3
    tolerance = 2e-5 if precision == "64-true" else of_bfloat16
    assert losses[1] == pytest.approx(losses[0], abs=tolerance)


def test_each_precision_is_what_computes(compose_config: Compose, tmp_path: Path) -> None:
    for setting, dtype in (("64-true", torch.float64), ("bf16-mixed", torch.bfloat16)):
        experiment = build(compose_config, tmp_path, f"trainer.precision={setting}")
        seen = set()
        experiment.model.output.register_forward_hook(
            lambda layer, inputs, logits, seen=seen: seen.add(logits.dtype)
        )
        experiment.trainer.fit(experiment.module, datamodule=experiment.data)
        assert seen == {dtype}


def build(compose_config: Compose, folder: Path, *more: str) -> Experiment:
    return build_experiment(compose_config(*overrides("gated", *more)), folder)


@pytest.mark.parametrize(
    ("setting", "instead"),
    [
        ("16-mixed", "bf16-mixed"),
        ("16", "bf16-mixed"),
        ("16-true", "bf16-mixed"),
        ("bf16-true", "bf16-mixed"),
        ("transformer-engine", "bf16-mixed"),
        ("8", "bf16-mixed"),
    ],
)
def test_any_other_is_refused_in_one_line(
    compose_config: Compose, tmp_path: Path, setting: str, instead: str
) -> None:
    with pytest.raises(ConfigFault) as fault:
        build(compose_config, tmp_path, f"trainer.precision={setting}")
    assert str(fault.value).startswith(f"trainer.precision={setting}: ")
    assert str(fault.value).endswith(instead)
    assert "\n" not in str(fault.value)


def test_short_names() -> None:
    for setting, name in ((32, "32-true"), ("64", "64-true"), ("bf16", "bf16-mixed")):
        assert precision_name(setting) == name


def test_what_is_slow_says_so(
    compose_config: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for setting, is_slow in (("bf16-mixed", True), ("32-true", False)):
        print_banner(build(compose_config, tmp_path, f"trainer.precision={setting}"))
        assert ("slower" in capsys.readouterr().out) == is_slow
