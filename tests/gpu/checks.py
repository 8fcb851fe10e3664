"""What must hold on a GPU: `make check-gpu`. `test_gpu_checks` tries the same checks on a CPU.

The file is not named as tests are, so that no other command collects it.

Shapes: B batch, T time (tokens).
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_CONTEXT, Compose
from omegaconf import DictConfig
from test_contract import CELLS
from test_graphs import results
from test_options import OPTIONS, small_config
from test_resume import RECIPES, RUN, SIZES, SaveBefore, fit
from test_together import train_together
from test_waiting import MODELS, STREAMS, StepByStep, batches
from torch import Tensor

from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.graphs import Graphs
from newllm.models.recurrence.parallel import Parallel
from newllm.models.recurrence.persistent import Persistent
from newllm.models.recurrence.reference import MASK_BLOCK, Recurrence, roll
from newllm.models.sampling import sample_sentences
from newllm.runs.directory import load_run, read_result
from newllm.training.experiment import build_experiment
from newllm.training.metrics import split_metrics
from newllm.training.run import train

ACCELERATORS = {"cuda": "gpu", "cpu": "cpu"}
RECURRENCES: dict[str, Callable[[], Recurrence]] = {
    "fused": partial(Fused, compile=False),  # on a CPU, where compiling takes long
    "graphs": Graphs,
    "parallel": Parallel,
    "persistent": partial(Persistent, compile=False),
}
LONGER = MASK_BLOCK + 5  # steps, of more than one segment
SMALL = (*TINY_CONTEXT, "data=tiny30", "countermeasure=none")


def on(device: str, config: DictConfig) -> DictConfig:
    """A configuration for a device."""
    config.trainer.accelerator = ACCELERATORS[device]
    return config


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Compare by the norm of the difference, relative to the norm."""
    for one, other in zip(found, expected, strict=True):
        difference, size = (float(each.double().norm()) for each in (one - other, other))
        assert difference <= tolerance * (size + 1e-3)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_trains(
    compose_config: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    group: str,
    option: str,
) -> None:
    config = on(device, small_config(compose_config, tmp_path, monkeypatch, group, option))
    config.trainer.update(max_epochs=1, limit_train_batches=2)
    result = train(config, tmp_path / "run")
    assert config.plan or result["status"] == "done"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("model", ["gated", "transformer", "lstm", "gru", "elman", "mingru"])
def test_models_train_in_every_precision(
    compose_config: Compose, tmp_path: Path, device: str, model: str, precision: str
) -> None:
    sizes = SIZES.get(model, SIZES["context" if model == "gated" else "lstm"])
    chosen = (f"model={model}", *sizes, *RECIPES["modern"], f"trainer.precision={precision}")
    config = on(device, compose_config(*RUN, *chosen, "optimizer.lr=0.02"))
    result = train(config, tmp_path / "run")
    assert result["status"] == "done"
    first, *_, last = (tmp_path / "run" / "steps.csv").read_text().splitlines()[1:]
    assert float(last.split(",")[2]) < float(first.split(",")[2])  # the loss has fallen


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", RECURRENCES)
@pytest.mark.parametrize("cell", ["gated LayerNorm residual 0.5", "multihead", "delta memory"])
def test_recurrences_agree(
    capfd: pytest.CaptureFixture[str], device: str, cell: str, name: str, autocast: bool
) -> None:
    """Values and gradients, with dropout masks that are drawn there, padding and resets."""
    torch.manual_seed(0)
    own = CELLS[cell]().to(device)
    carry = RECURRENCES[name]()
    flags = [(torch.rand(3, LONGER) < 0.2).to(device) for _ in range(2)]
    both: list[list[Tensor]] = []
    for read in (carry, roll):
        with torch.autocast(device, torch.bfloat16, autocast):
            both.append(results(read, own, 3, LONGER, flags=flags))
    assert_near(*both, tolerance=0.05 if autocast else 1e-3)
    told = capfd.readouterr().err
    assert "cannot be captured" not in told
    # Triton's interpreter rounds bfloat16 towards zero, and "delta memory" is no built-in cell.
    assert "of persistent" not in told or (cell == "delta memory") or (autocast and device == "cpu")


@pytest.mark.parametrize(
    ("name", "reset"), [*((name, False) for name in MODELS), *((name, True) for name in STREAMS)]
)
def test_a_step_waits_for_nothing(tmp_path: Path, device: str, name: str, reset: bool) -> None:
    trainer = StepByStep(MODELS[name]().to(device), tmp_path)
    trainer.take_steps(batches(reset).to(device), 2)  # compiles, captures, and chooses kernels
    with waiting_is_an_error(device):
        trainer.take_steps(batches(reset).to(device), 2)


@contextlib.contextmanager
def waiting_is_an_error(device: str) -> Iterator[None]:
    """On a GPU, whatever makes the host wait for it raises an error."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:.*logging interval.*", "ignore:.*lr_scheduler.step.*")
@pytest.mark.parametrize("model", ["gated", "transformer", "lstm"])
def test_resumed_equals_uninterrupted(
    compose_config: Compose, tmp_path: Path, device: str, model: str
) -> None:
    sizes = SIZES["context" if model == "gated" else model]
    chosen = (f"model={model}", *sizes, *RECIPES["modern"])
    config = on(device, compose_config(*RUN, *chosen))
    whole = fit(config, tmp_path / "whole", seed=3)
    (saver,) = whole.callbacks(SaveBefore)
    step, checkpoint = list(saver.saved.items())[1]
    resumed = fit(config, tmp_path / str(step), seed=99, checkpoint=checkpoint)
    # Sums on a GPU may be taken in another order.
    for name, weights in whole.model.state_dict().items():
        torch.testing.assert_close(
            resumed.model.state_dict()[name], weights, rtol=1e-4, atol=1e-5, msg=name
        )
    assert len(resumed.history.steps) == len(whole.history.steps)


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
@pytest.mark.parametrize("model", ["gated", "transformer", "mingru"])
def test_seeds_at_once(
    compose_config: Compose,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    device: str,
    model: str,
) -> None:
    sizes = SIZES.get(model, SIZES["context" if model == "gated" else "lstm"])
    chosen = (f"model={model}", *sizes, *RECIPES["modern"])
    if model == "transformer":
        chosen += ("recipe.dropout=0",)  # fused attention draws other masks when it is alone
    configs = [on(device, compose_config(*RUN, *chosen, f"seed={seed}")) for seed in (1, 2, 3)]
    together = train_together(configs, tmp_path)
    err = capsys.readouterr().err
    assert ("one after another" in err) == (device == "cpu" and model == "gated"), err
    for config, folder in zip(configs, together, strict=True):
        alone = train(config, tmp_path / f"alone{config.seed}")
        result = read_result(folder)
        assert result["status"] == alone["status"] == "done"
        # Sums on a GPU may be taken in another order.
        assert result["best_val_loss"] == pytest.approx(alone["best_val_loss"], rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*logging interval.*")
def test_evaluation_and_generation(compose_config: Compose, tmp_path: Path, device: str) -> None:
    """What is trained there is evaluated there and here with the same figures."""
    config = on(device, compose_config(*SMALL, "trainer.max_epochs=2", "logger=csv"))
    result = train(config, tmp_path / "run")
    here = load_run(tmp_path / "run").model
    assert next(here.parameters()).is_cpu
    source = build_experiment(config, tmp_path / "other").source
    split, tokenizer = source.evaluation["validation"], source.tokenizer
    assert tokenizer is not None
    found = split_metrics(here, split, tokenizer)
    assert found["loss"] == pytest.approx(result["best_val_loss"], rel=1e-3)
    there = load_run(tmp_path / "run").model.to(device)
    assert split_metrics(there, split, tokenizer) == pytest.approx(found, rel=1e-3)
    sentences = sample_sentences(there, tokenizer, 4, max_tokens=12)
    assert len(sentences) == 4
    tokens_BT = split.batch(0, 0).tokens_BT
    traces = [model.trace(tokens_BT.to(d)) for model, d in ((here, "cpu"), (there, device))]
    contexts = [trace.contexts_BTC.cpu() for trace in traces]
    torch.testing.assert_close(*contexts, rtol=1e-2, atol=1e-3)


def test_callbacks_and_files(compose_config: Compose, tmp_path: Path, device: str) -> None:
    config = on(device, compose_config(*SMALL, "max_tokens=600", "logger=[tensorboard,csv]"))
    result: dict[str, Any] = train(config, tmp_path)
    names = ("result.json", "metrics.csv", "steps.csv", "curves.png", "checkpoints/best.ckpt")
    assert all((tmp_path / name).stat().st_size > 0 for name in names)
    assert (tmp_path / "validation_steps.csv").exists()
    (logged,) = tmp_path.rglob("csv/*/metrics.csv")
    assert "speed/tokens_per_second" in logged.read_text().splitlines()[0]
    assert result["status"] == "done"
