"""Metrics against their definitions, clipping and schedules."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from encoded_sentences import encoded
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from newllm.data.batch import IGNORE, Batch
from newllm.data.batching import SentenceBatches
from newllm.data.encoded import EncodedSplit
from newllm.data.tokenizer import BOS, EOS, UNK
from newllm.models.language_model import score_logits
from newllm.training.metrics import Scores, sum_rows
from newllm.training.module import Schedule

V = 7


def make_split(num_sentences: int) -> EncodedSplit:
    generator = torch.Generator().manual_seed(0)
    sentences = []
    for length in torch.randint(1, 6, (num_sentences,), generator=generator).tolist():
        words = torch.randint(UNK, V, (length,), generator=generator)
        words[words == BOS] = UNK
        sentences.append([BOS, *words.tolist(), EOS])
    return encoded(sentences)


def logits_of(batch: Batch) -> Tensor:
    """Logits that depend on the token and its position alone, so that batching cannot matter."""
    table = torch.randn(V, 8, V, generator=torch.Generator().manual_seed(1))
    return table[batch.tokens_BT, torch.arange(batch.tokens_BT.shape[1])]


def test_metrics_are_their_definitions_whatever_the_batching() -> None:
    split = make_split(35)
    losses, known, correct = [], [], []
    by_sentence = []
    for i in range(len(split)):
        batch = split.batch(torch.tensor([i]))
        log_p = logits_of(batch).log_softmax(-1)[0]
        targets = batch.targets_BT[0]
        token = -log_p[torch.arange(len(targets)), targets]
        losses += token.tolist()
        known += token[targets != UNK].tolist()
        correct += (log_p.argmax(-1) == targets).tolist()
        by_sentence.append(token)
    groups = [torch.cat(by_sentence[i : i + 16]).mean().item() for i in range(0, 35, 16)]

    scores = Scores(SentenceBatches.metrics)
    for row_B in torch.randperm(35, generator=torch.Generator().manual_seed(2)).split(6):
        batch = split.batch(row_B)
        logits_BTV = logits_of(batch)
        scores.add(sum_rows(*score_logits(logits_BTV, batch.targets_BT), batch))
    metrics = scores.metrics()
    assert metrics["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert metrics["loss_known"] == pytest.approx(sum(known) / len(known), rel=1e-6)
    assert metrics["loss_batch_mean"] == pytest.approx(sum(groups) / len(groups), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-6)
    assert metrics["accuracy"] == sum(correct) / len(correct)
    assert len(known) < len(losses), "the test needs unknown targets"


def test_token_losses_are_zero_where_nothing_is_scored() -> None:
    targets_BT = torch.tensor([[4, IGNORE], [5, 6]])
    losses_BT, _ = score_logits(torch.randn(2, 2, V), targets_BT)
    assert losses_BT[0, 1] == 0
    assert (losses_BT[targets_BT != IGNORE] > 0).all()


def test_schedule_refuses_an_unknown_interval() -> None:
    with pytest.raises(ValueError, match=r"schedule\.interval=batch"):
        Schedule("batch", lambda optimizer: None)


PEAK = 0.1


def some_optimizer() -> Optimizer:
    return SGD(nn.Linear(1, 1).parameters(), lr=PEAK)


def rates(schedule: Schedule, num_steps: int) -> list[float]:
    """The learning rate of each step of a run, which advances the schedule after its last one."""
    optimizer = some_optimizer()
    scheduler = schedule.build(optimizer, num_steps)
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("pct_start", [0.0, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("num_steps", [*range(1, 13), 19, 20, 21, 100])
def test_a_cycle_fits_a_run_of_any_length(num_steps: int, pct_start: float) -> None:
    cycle = partial(OneCycleLR, max_lr=PEAK, pct_start=pct_start, cycle_momentum=False)
    found = rates(Schedule("step", cycle), num_steps)
    assert all(0 < rate <= PEAK for rate in found)
    assert max(found) > PEAK / 4, "no step that would learn anything"
    if num_steps > 1:
        assert found[-1] == min(found)


def test_a_cycle_of_a_long_run_is_that_of_torch() -> None:
    cycle = partial(OneCycleLR, max_lr=PEAK, pct_start=0.1, cycle_momentum=False)
    optimizer = some_optimizer()
    scheduler = cycle(optimizer, total_steps=50)
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(Schedule("step", cycle), 50) == expected


@pytest.mark.parametrize(
    ("interval", "scheduler", "message"),
    [
        ("step", partial(OneCycleLR, max_lr=1.0, pct_start=1.0), "division"),
        ("epoch", ReduceLROnPlateau, "metrics"),
        ("epoch", partial(StepLR, step_size=1, gamma=1e200), "learning rate is inf"),
        ("epoch", partial(StepLR, step_size=1, gamma=-1.0), "learning rate is -0.1 after 1"),
        ("step", partial(StepLR, step_size=1), "total_steps"),
    ],
)
def test_a_schedule_that_breaks_on_its_way_does_so_before_the_run(
    interval: str, scheduler: Any, message: str
) -> None:
    with pytest.raises((ValueError, TypeError, ZeroDivisionError), match=message):
        Schedule(interval, scheduler).check(some_optimizer(), total_steps=10, num_epochs=5)


def test_a_check_takes_as_many_steps_as_the_run_or_some_hundred() -> None:
    taken = []

    class Counting(LRScheduler):
        def get_lr(self) -> list[float]:
            taken.append(1)
            return list(self.base_lrs)

    Schedule("epoch", Counting).check(some_optimizer(), total_steps=10, num_epochs=3)
    assert len(taken) == 1 + 3  # the first when it is built
    taken.clear()
    Schedule("epoch", Counting).check(some_optimizer(), total_steps=10, num_epochs=10**9)
    assert len(taken) < 1000
