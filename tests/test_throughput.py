"""Tokens per second, with a clock and a device that the test decides on."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_models import context_model

from newllm.data.batch import Batch
from newllm.data.tokenizer import PAD
from newllm.training import turns
from newllm.training.clipping import GradientClip
from newllm.training.module import LanguageModule
from newllm.training.optimizer import OptimizerFactory
from newllm.training.throughput import INTERVAL, Throughput, peak_tflops
from newllm.training.turns import Turns, current_member, own_seconds


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(turns, "time", clock)
    return clock


def make_module() -> LanguageModule:
    optimizer = OptimizerFactory(partial(torch.optim.SGD, lr=0.1))
    return LanguageModule(context_model(9), optimizer, None, GradientClip([]), 100)


def make_trainer(logged: list[dict[str, float]]) -> Any:
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.append(metrics))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        precision="32-true", strategy=strategy, loggers=[logger], global_step=1, world_size=1
    )


BATCH = Batch(torch.tensor([[5, 6, 7], [5, PAD, PAD]]), torch.zeros(2, 3).long(), torch.arange(2))


def test_tokens_per_second_and_their_share_of_the_peak(clock: Clock) -> None:
    module, logged = make_module(), []  # type: ignore[var-annotated]
    trainer, found = make_trainer(logged), Throughput(peak_tflops=1e-6)
    found.on_train_start(trainer, module)
    for step in range(INTERVAL):
        clock.now += 0.01
        found.on_train_batch_end(trainer, module, None, BATCH, step)
        assert bool(logged) == (step == INTERVAL - 1)
    num_tokens, seconds = 4 * INTERVAL, 0.01 * INTERVAL
    flops = 3 * module.model.flops_per_token(1) * num_tokens
    assert logged[0]["speed/tokens_per_second"] == pytest.approx(num_tokens / seconds)
    assert logged[0]["speed/mfu"] == pytest.approx(flops / seconds / 1e6)
    assert found.line.startswith("400 tokens/s, ")


def test_validation_and_what_came_before_do_not_count(clock: Clock) -> None:
    module, logged = make_module(), []  # type: ignore[var-annotated]
    trainer, found = make_trainer(logged), Throughput()
    assert found.line == ""
    found.on_train_start(trainer, module)
    for _ in range(2):
        clock.now += 1
        found.on_train_batch_end(trainer, module, None, BATCH, 0)
        found.on_validation_start(trainer, module)
        clock.now += 100
        found.on_validation_end(trainer, module)
        found.on_train_epoch_end(trainer, module)
    found.on_train_epoch_end(trainer, module)  # of no steps
    assert logged == [{"speed/tokens_per_second": pytest.approx(4)}] * 2  # no peak of this device
    assert found.line == "4 tokens/s"


@pytest.mark.parametrize(
    ("name", "is_precise", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", False, 989),
        ("NVIDIA H100 PCIe", False, 756),
        ("NVIDIA H200", True, 67),
        ("NVIDIA GeForce GTX 1080", False, None),
    ],
)
def test_the_peak_of_a_device(
    name: str, is_precise: bool, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_tflops(torch.device("cuda"), is_precise) == peak
    assert peak_tflops(torch.device("cpu"), is_precise) is None


def test_runs_of_one_process_count_their_own_time(clock: Clock) -> None:
    """A turn counts for its own run, and an answer in equal shares for those that get it."""
    found: dict[int, float] = {}

    def work(number: int) -> None:
        started, member = own_seconds(), current_member()
        assert member is not None
        for _ in range(2):
            clock.now += number
            member.ask(SimpleNamespace(kind=number == 3))
        found[number] = own_seconds() - started

    def answer(members: Any) -> None:
        clock.now += 60
        for member in members:
            member.give(None)

    together = Turns(answer)
    for number in (1, 2, 3):
        together.add(partial(work, number))
    together.run()
    assert found == {1: 2 * (1 + 30), 2: 2 * (2 + 30), 3: 2 * (3 + 60)}
    assert clock.now == sum(found.values())
