"""A run before the run: a copy takes a few steps, which tells how long the whole will take.

It leaves nothing behind but machine code that was compiled on the way: no file, no random draw, no
weight of the run itself.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice

import torch

from newllm.data.batch import Batch, on_device_of
from newllm.data.source import VALIDATION
from newllm.training.clipping import clip_gradients
from newllm.training.clock import batches_of_epoch
from newllm.training.experiment import Experiment
from newllm.training.step_validation import StepValidation

WARM_UP_TOKENS = 8
CONSIDERED = 500  # batches among which samples are chosen
# What Lightning, the loggers and the tables add, measured on two cores.
SECONDS_A_STEP, SECONDS_AN_EPOCH, SECONDS_A_RUN = 0.002, 0.1, 2.0


@dataclass(frozen=True)
class Estimate:
    """Seconds that the parts of a run take here; start-up and the compiler are not among them."""

    training: float
    validation: float

    @property
    def total(self) -> float:
        return self.training + self.validation


def warm_up(experiment: Experiment) -> None:
    """Let everything that is compiled on demand be compiled before the first step."""
    batch = experiment.source.train.batch(0, 0)
    first = slice(0, WARM_UP_TOKENS)
    reset_BT = None if batch.reset_BT is None else batch.reset_BT[:, first]
    # All rows, since the step of a cell of one's own is compiled for as many.
    start = batch._replace(
        tokens_BT=batch.tokens_BT[:, first],
        targets_BT=batch.targets_BT[:, first],
        reset_BT=reset_BT,
    )
    _Rehearsal(experiment).step(start)


def estimate(experiment: Experiment, num_samples: int = 10) -> Estimate:
    """Time some steps and some batches of the validation split, of all lengths that occur."""
    warm_up(experiment)
    rehearsal, source = _Rehearsal(experiment), experiment.source
    some = [*islice(experiment.data.train_dataloader(), CONSIDERED)]
    rehearsal.step(some[0])  # makes the optimizer's state
    step = _mean_seconds(rehearsal.step, some, num_samples)
    validation = source.evaluation[VALIDATION]
    look = _mean_seconds(rehearsal.validate, [*islice(validation, CONSIDERED)], num_samples)
    trainer, num_steps = experiment.trainer, experiment.preflight.num_steps
    batches_a_step = trainer.accumulate_grad_batches
    names = experiment.data.validation_names
    num_batches = sum(len(source.evaluation[name]) for name in names)
    epochs = trainer.max_epochs or 1
    around = num_steps * SECONDS_A_STEP + epochs * SECONDS_AN_EPOCH + SECONDS_A_RUN
    return Estimate(
        training=num_steps * step * batches_a_step + around,
        validation=look * (_num_validations(experiment) * num_batches + _num_looks(experiment)),
    )


def _num_validations(experiment: Experiment) -> float:
    """Validations of the whole split, if nothing stops the run early."""
    trainer, interval = experiment.trainer, experiment.trainer.val_check_interval
    in_batches = isinstance(interval, int)
    limit = trainer.limit_train_batches
    num_batches = batches_of_epoch(experiment.data.steps_per_epoch, limit)
    an_epoch = (num_batches if in_batches else 1) / interval
    return (trainer.max_epochs or 1) / (trainer.check_val_every_n_epoch or 1) * an_epoch


def _num_looks(experiment: Experiment) -> int:
    """Batches that are scored beside those of the validations."""
    num_steps = experiment.preflight.num_steps
    return sum(
        callback.prepare(experiment.source, num_steps).num_batches(num_steps)
        for callback in experiment.callbacks(StepValidation)
    )


def _mean_seconds(
    take: Callable[[Batch], None], batches: Sequence[Batch], num_samples: int
) -> float:
    """Mean time over batches, from samples spread over their sizes."""
    by_size = sorted(batches, key=lambda batch: batch.tokens_BT.numel())
    num_samples = min(num_samples, len(by_size))
    places = ((2 * sample + 1) * len(by_size) // (2 * num_samples) for sample in range(num_samples))
    started = time.perf_counter()
    for place in places:
        take(by_size[place])
    return (time.perf_counter() - started) / num_samples


class _Rehearsal:
    """A copy of a run's module in the run's precision, and its optimizer."""

    def __init__(self, experiment: Experiment) -> None:
        self.precision = experiment.trainer.precision_plugin
        self.device = experiment.trainer.strategy.root_device
        self.module = copy.deepcopy(experiment.module).to(self.device)
        self.precision.convert_module(self.module)  # in place
        self.optimizer = self.module.make_optimizer(self.module.model.parameters())

    def step(self, batch: Batch) -> None:
        """One of training."""
        self.module.train()
        with self._own_random_numbers():
            with self.precision.forward_context():
                loss = self.module.loss(self._here(batch))
            loss.backward()
            clip_gradients(self.optimizer, self.module.gradient_clip(0))
            self.optimizer.step()
            self.optimizer.zero_grad()
            loss.item()  # an accelerator would not wait

    def validate(self, batch: Batch) -> None:
        """A batch of an evaluation."""
        self.module.eval()
        with torch.inference_mode(), self.precision.forward_context():
            self.module.loss(self._here(batch)).item()  # an accelerator would not wait

    def _here(self, batch: Batch) -> Batch:
        return next(on_device_of(self.module, [batch]))

    def _own_random_numbers(self) -> AbstractContextManager[None]:
        """Let the generators be as they were in the end."""
        if self.device.type == "cpu":
            return torch.random.fork_rng(devices=[])
        return torch.random.fork_rng(devices=[self.device], device_type=self.device.type)
