"""The steps before the first step: what they compile, what they leave alone, what they foretell."""

import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_CONTEXT, Compose

from newllm.models.recurrence import notice
from newllm.models.recurrence.native import launch
from newllm.sweeps.jobs import duration, side_by_side_seconds
from newllm.training import estimate as module
from newllm.training.estimate import estimate, warm_up
from newllm.training.experiment import Experiment, build_experiment

QUIET = ("data=tiny30", "logger=none", "callbacks=none", *TINY_CONTEXT)


def build(compose_config: Compose, folder: Path, *overrides: str) -> Experiment:
    return build_experiment(compose_config(*QUIET, *overrides), folder)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, torch.dtype]]:
    """What is asked of the compiler, in order."""
    asked: list[tuple[str, torch.dtype]] = []
    real = launch._compiled

    def compile_function(direction: str, dtype: torch.dtype) -> object:
        asked.append((direction, dtype))
        return real(direction, dtype)

    monkeypatch.setattr(launch, "_compiled", compile_function)
    monkeypatch.setattr(launch, "_ready", {})
    return asked


@pytest.mark.parametrize(
    ("overrides", "dtype"),
    [
        ((), torch.float32),
        (("model.recompute=true",), torch.float32),
        (("trainer.precision=64-true",), torch.float64),
        (("recurrence=reference",), None),
        (("trainer.precision=bf16-mixed",), None),
    ],
)
def test_all_is_compiled_before_the_first_step_and_nothing_else(
    compose_config: Compose,
    tmp_path: Path,
    compiled: list[tuple[str, torch.dtype]],
    overrides: tuple[str, ...],
    dtype: torch.dtype | None,
) -> None:
    experiment = build(compose_config, tmp_path, "trainer=smoke", *overrides)
    assert compiled == []
    warm_up(experiment)
    wanted = [] if dtype is None else [("forward", dtype), ("backward", dtype)]
    assert compiled == wanted
    experiment.trainer.fit(experiment.module, datamodule=experiment.data)
    assert compiled == wanted


def test_an_evaluation_compiles_no_way_back(
    compose_config: Compose, tmp_path: Path, compiled: list[tuple[str, torch.dtype]]
) -> None:
    experiment = build(compose_config, tmp_path)
    with torch.no_grad():
        experiment.model.eval()(torch.full((2, 6), 5))
    assert compiled == [("forward", torch.float32)]


def test_a_long_wait_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notice, "PATIENCE", 0.0)
    monkeypatch.setattr(launch, "_ready", {})
    monkeypatch.setattr(launch, "_compiled", lambda direction, dtype: time.sleep(0.1))
    for _ in range(2):
        launch.prepare(("forward", "backward"), torch.float32)
    assert capsys.readouterr().err == f"compiling {launch.WHAT} (about {launch.SECONDS} s) ...\n"


def test_the_steps_before_change_nothing_of_the_run(
    compose_config: Compose, tmp_path: Path
) -> None:
    experiment = build(compose_config, tmp_path)
    weights = [weight.clone() for weight in experiment.model.parameters()]
    random_state = torch.get_rng_state()
    estimate(experiment)
    assert torch.equal(torch.get_rng_state(), random_state)
    for weight, before in zip(experiment.model.parameters(), weights, strict=True):
        assert torch.equal(weight, before)
        assert weight.grad is None
    assert not experiment.history.steps
    assert not list(tmp_path.iterdir())


def test_an_estimate_counts_steps_and_validation(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every batch taking a second, 2 batches and 1 batch of validation an epoch."""
    monkeypatch.setattr(module, "_mean_seconds", lambda *_: 1.0)
    for name in ("SECONDS_A_STEP", "SECONDS_AN_EPOCH", "SECONDS_A_RUN"):
        monkeypatch.setattr(module, name, 0.0)
    found = estimate(build(compose_config, tmp_path, "trainer.max_epochs=5"))
    assert found == (10.0, 5.0)
    ended = ("trainer.max_epochs=5", "trainer.max_steps=7")  # within the fourth epoch
    assert estimate(build(compose_config, tmp_path, *ended)) == (7.0, 3.0)
    across = (*ended, "+trainer.val_check_interval=3", "+trainer.check_val_every_n_epoch=null")
    assert estimate(build(compose_config, tmp_path, *across)) == (7.0, 2.0)
    accumulated = ("trainer.max_epochs=5", "+trainer.accumulate_grad_batches=2")
    assert estimate(build(compose_config, tmp_path, *accumulated)) == (10.0, 5.0)
    looking = build(compose_config, tmp_path, "trainer.max_epochs=5", "callbacks=default")
    assert estimate(looking) == (10.0, 5.0 + 11)  # and one before and after each step


def test_jobs_side_by_side() -> None:
    assert side_by_side_seconds([], 2) == 0
    assert side_by_side_seconds([3, 1, 2], 1) == 6
    assert side_by_side_seconds([3, 1, 2], 2) == 3
    assert side_by_side_seconds([1, 1, 5], 2) == 6  # in their order
    assert [duration(seconds) for seconds in (7, 600, 9000)] == ["7 s", "10 min", "2.5 h"]
