"""Runs that are trained together end as each does alone, whatever happens to the others."""

import contextlib
import csv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_CONTEXT, Compose
from lightning.pytorch import Callback
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from newllm.models.gating import Additive
from newllm.runs.directory import read_result
from newllm.runs.identity import config_hash
from newllm.sweeps.policy import run_job_of_sweep
from newllm.training.checkpoints import Checkpoints
from newllm.training.module import LanguageModule
from newllm.training.together import KnownGradients, Together
from newllm.training.turns import Turns

RUN = (
    *("recipe=modern", "data=tiny30", "data.batch_size=5", "recipe.max_epochs=3"),
    *("countermeasure=none", "logger=none", "callbacks=none", "optimizer.lr=0.02"),
    "trainer.precision=64-true",  # Adam makes whole steps of what is only rounding
)
GATED = ("model=gated", "recurrence=reference", *TINY_CONTEXT)
SMALL = ("model.embedding_dim=8", "model.num_layers=2")
MODELS = {
    "gated": GATED,
    "transformer": ("model=transformer", *SMALL, "model.num_heads=2", "model.feedforward_dim=8"),
    "lstm": ("model=lstm", *SMALL, "model.hidden_dim=8"),
}
SEEDS = (1, 2, 3)
pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")


def train_together(
    configs: Sequence[DictConfig], top: Path, turns: Turns | None = None
) -> list[Path]:
    """Train as a worker of a sweep does, and return the folders."""
    turns = turns or Turns(Together().answer)
    folders = [top / "run" / f"seed={config.seed}" for config in configs]
    for config, folder in zip(configs, folders, strict=True):
        turns.add(partial(_run, config, folder, top))
    turns.run()
    return folders


def _run(config: DictConfig, folder: Path, top: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt):  # what an interrupted run raises
        run_job_of_sweep(config, folder, [f"seed={config.seed}"], top)


ALONE: dict[str, Path] = {}


@pytest.fixture
def train_alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Path]]:
    """Train one after another, without threads, and return the folders; each run once."""

    def trained(configs: Sequence[DictConfig]) -> list[Path]:
        folders = []
        for config in configs:
            if (key := config_hash(config)) not in ALONE:
                top = tmp_path_factory.mktemp("alone")
                ALONE[key] = top / "run" / f"seed={config.seed}"
                _run(config, ALONE[key], top)
            folders.append(ALONE[key])
        return folders

    return trained


def numbers(file: Path) -> list[list[float]]:
    header, *rows = csv.reader(file.read_text().splitlines())
    kept = [i for i, name in enumerate(header) if "speed" not in name]
    return [[float(row[i] or "nan") for i in kept] for row in rows]


def assert_same(found: Path, expected: Path) -> None:
    """Compare results, histories and weights of two runs."""
    same = ("status", "steps", "epochs", "best_epoch", "best_step", "config_hash", "seed", "error")
    one, other = read_result(found), read_result(expected)
    assert {name: one[name] for name in same} == {name: other[name] for name in same}
    assert one["best_val_loss"] == pytest.approx(other["best_val_loss"], rel=1e-6)
    for name in ("metrics.csv", "steps.csv"):
        pairs = zip(numbers(found / name), numbers(expected / name), strict=True)
        assert all(row == pytest.approx(like, rel=1e-5, nan_ok=True) for row, like in pairs), name
    weights, expected_weights = (
        torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["model"]
        for folder in (found, expected)
    )
    for name, weight in expected_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-6, msg=name)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each pass was for."""
    found: list[int] = []
    computed = Together._computed

    def count(self: Together, members: Sequence[Any]) -> Any:
        found.append(len(members))
        return computed(self, members)

    monkeypatch.setattr(Together, "_computed", count)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_together_as_alone(
    compose_config: Compose,
    tmp_path: Path,
    train_alone: Callable[..., list[Path]],
    passes: list[int],
    model: str,
) -> None:
    more = ("+trainer.accumulate_grad_batches=2",) if model == "gated" else ()
    configs = [compose_config(*RUN, *MODELS[model], *more, f"seed={seed}") for seed in SEEDS]
    found = train_together(configs, tmp_path / "together")
    assert (len(passes) > 0) == (model != "lstm")
    assert set(passes) <= {3}
    expected = train_alone(configs)
    for folder, other in zip(found, expected, strict=True):
        assert read_result(folder)["status"] == "done"
        assert_same(folder, other)
    # Seeds differ.
    assert len({read_result(folder)["best_val_loss"] for folder in found}) == len(SEEDS)


class StopAt(Callback):
    """Ends a run early."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.should_stop = trainer.current_epoch + 1 == self.epoch


def test_runs_that_end_at_different_times(
    compose_config: Compose,
    tmp_path: Path,
    train_alone: Callable[..., list[Path]],
    passes: list[int],
) -> None:
    """One diverges in its first epoch, one stops after the second, and one was done before."""
    node = "+callbacks.stop={_target_: test_together.StopAt}"
    trusted = "trusted_packages=[test_together]"
    configs = []
    for seed, epoch in ((1, 2), (2, 9), (3, 9), (4, 9)):
        stop = f"{node}", f"+callbacks.stop.epoch={epoch}", trusted
        configs.append(compose_config(*RUN, *GATED, f"seed={seed}", *stop))
    configs[1].optimizer.lr = 1e30
    configs[1].recipe.gradient_clip = []
    expected = train_alone(configs)
    top = tmp_path / "together"
    train_together(configs[3:], top)
    assert not passes
    before = (top / "run" / "seed=4" / "result.json").stat().st_mtime_ns
    found = train_together(configs, top)
    assert passes == sorted(passes, reverse=True)
    assert set(passes) == {3, 2}
    assert [read_result(folder)["status"] for folder in found] == [
        "done",
        "diverged",
        "done",
        "done",
    ]
    assert [read_result(folder)["epochs"] for folder in found][::2] == [2, 3]
    assert (found[3] / "result.json").stat().st_mtime_ns == before
    for number in (0, 2):
        assert_same(found[number], expected[number])
    assert read_result(found[1])["error"] == read_result(expected[1])["error"]


AVERAGED = (
    "+callbacks.average={_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.5}"
)


@pytest.mark.parametrize("more", [(), (AVERAGED,)], ids=["plain", "averaged"])
def test_asked_to_stop_and_resumed(
    compose_config: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train_alone: Callable[..., list[Path]],
    passes: list[int],
    more: tuple[str, ...],
) -> None:
    """Also with a callback that copies the module and adds weights to a checkpoint."""
    configs = [compose_config(*RUN, *GATED, *more, f"seed={seed}") for seed in SEEDS]
    turns = Turns(Together().answer)
    with monkeypatch.context() as patch:
        go_on = Checkpoints.on_train_batch_start

        def ask(self: Checkpoints, trainer: Any, *arguments: Any) -> None:
            turns.is_asked_to_stop |= trainer.global_step == 7
            go_on(self, trainer, *arguments)

        patch.setattr(Checkpoints, "on_train_batch_start", ask)
        found = train_together(configs, tmp_path / "together", turns)
    assert [read_result(folder)["status"] for folder in found] == ["interrupted"] * 3
    last = [folder / "checkpoints" / "last.ckpt" for folder in found]
    steps = [torch.load(path, weights_only=True)["global_step"] for path in last]
    assert sorted(set(steps)) in ([6, 7], [7])
    # A checkpoint has the weights of its own run alone.
    for weight in tree_leaves(torch.load(last[0], weights_only=True)):
        if isinstance(weight, Tensor):
            assert weight.untyped_storage().nbytes() == weight.nbytes
    passes.clear()
    train_together(configs, tmp_path / "together")
    assert max(passes) == 3
    expected = train_alone(configs)
    for folder, other in zip(found, expected, strict=True):
        assert_same(folder, other)


def test_a_run_that_fails_leaves_the_others_as_they_are(
    compose_config: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train_alone: Callable[..., list[Path]],
) -> None:
    configs = [compose_config(*RUN, *GATED, f"seed={seed}") for seed in SEEDS]
    step = LanguageModule.training_step

    def fail(self: LanguageModule, batch: Any, batch_index: int) -> Any:
        if self.trainer.default_root_dir.endswith("seed=2") and self.trainer.global_step == 4:
            raise RuntimeError("of this run alone")
        return step(self, batch, batch_index)

    monkeypatch.setattr(LanguageModule, "training_step", fail)
    found = train_together(configs, tmp_path / "together")
    assert [read_result(folder)["status"] for folder in found] == ["done", "failed", "done"]
    assert "of this run alone" in read_result(found[1])["error"]
    expected = train_alone(configs[::2])
    for folder, other in zip(found[::2], expected, strict=True):
        assert_same(folder, other)


class OverRows(Additive):
    """Mixes the rows of a batch, as no layer should."""

    def forward(self, hidden_BH: Tensor, context_BC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(hidden_BH - hidden_BH.mean(0), context_BC)


class Counting(Additive):
    """Counts its steps."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, hidden_BH: Tensor, context_BC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.count += 1
        return super().forward(hidden_BH, context_BC)


@pytest.mark.parametrize("fault", ["rows", "buffer", "memory"])
def test_what_cannot_be_computed_together_is_computed_alone(
    compose_config: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train_alone: Callable[..., list[Path]],
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    chosen = [*RUN, *GATED]
    reason = "the models give other values together than alone"
    if fault == "rows":
        chosen += ["gating._target_=test_together.OverRows", "trusted_packages=[test_together]"]
    elif fault == "buffer":
        chosen += ["gating._target_=test_together.Counting", "trusted_packages=[test_together]"]
        reason = "layers.0.cell.gating.count changes, which is no weight"
    else:
        reason = "out of memory"
        monkeypatch.setattr("newllm.training.together.Ensemble", _raising(reason))
    configs = [compose_config(*chosen, f"seed={seed}") for seed in SEEDS[:2]]
    found = train_together(configs, tmp_path / "together")
    told = f"seeds_at_once: trained one after another from here; {reason}"
    assert capsys.readouterr().err.splitlines().count(told) == 1
    expected = train_alone(configs)
    for folder, other in zip(found, expected, strict=True):
        assert read_result(folder)["status"] == "done"
        assert_same(folder, other)
        assert numbers(folder / "steps.csv") == numbers(other / "steps.csv")  # to the last digit


class Anneal(Callback):
    """Drops fewer of the embeddings after the first epoch."""

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        module.model.embedding_dropout.p = 0.4 if trainer.current_epoch == 0 else 0.1


def test_what_a_callback_schedules_is_followed(
    compose_config: Compose,
    tmp_path: Path,
    train_alone: Callable[..., list[Path]],
    passes: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    anneal = (
        "+callbacks.anneal={_target_: test_together.Anneal}",
        "trusted_packages=[test_together]",
    )
    configs = [compose_config(*RUN, *GATED, *anneal, f"seed={seed}") for seed in SEEDS]
    found = train_together(configs, tmp_path / "together")
    assert passes
    assert "from here; embedding_dropout.p changes, which is no weight" in capsys.readouterr().err
    for folder, other in zip(found, train_alone(configs), strict=True):
        assert_same(folder, other)


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        (("recurrence=fused",), "on a CPU, native code reads the weights of one model"),
        (("recurrence=persistent",), "on a CPU, native code reads the weights of one model"),
        (("recurrence=parallel",), "recurrence=parallel orders rows by their tokens"),
        (("recurrence=fused", "trainer.precision=bf16-mixed"), ""),  # no native code in autocast
        (("recurrence=reference",), ""),
    ],
)
def test_which_recurrences_are_computed_together(
    compose_config: Compose,
    tmp_path: Path,
    passes: list[int],
    capsys: pytest.CaptureFixture[str],
    chosen: tuple[str, ...],
    reason: str,
) -> None:
    small = *RUN, *GATED, "recipe.max_epochs=1", *chosen
    train_together([compose_config(*small, f"seed={seed}") for seed in SEEDS[:2]], tmp_path)
    assert bool(passes) == (not reason)
    told = [line for line in capsys.readouterr().err.splitlines() if "seeds_at_once" in line]
    assert len(told) == (2 if reason else 0)
    assert all(
        line.startswith(f"seeds_at_once: trained one after another; {reason}") for line in told
    )


def _raising(reason: str) -> Callable[..., Any]:
    def make(*_: object) -> Any:
        raise torch.OutOfMemoryError(reason)

    return make


def test_gradients_are_those_of_the_sum_of_losses() -> None:
    """Anything else than a multiple of the sum would get a wrong gradient, so it fails."""
    model = nn.Linear(2, 2)
    losses = torch.rand(3, 4)
    gradients = [torch.ones(2, 2), None]
    known: Any = partial(KnownGradients.apply, losses, gradients)
    (known(*model.parameters()).sum() / 4).backward()
    assert torch.equal(model.weight.grad, torch.full((2, 2), 0.25))  # type: ignore[arg-type]
    assert model.bias.grad is None
    with pytest.raises(AssertionError, match="not the sum of the losses"):
        (known(*model.parameters()) * losses).sum().backward()
