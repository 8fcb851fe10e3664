"""How long a run will take, measured on a copy of its model before the first step.

Nothing of the run itself changes: no file, no weight, no random number. What is compiled remains.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
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
MAX_BATCHES = 500  # from which the timed ones are chosen
# Overhead of Lightning, the loggers and the tables, measured on two cores.
SECONDS_A_STEP, SECONDS_AN_EPOCH, SECONDS_A_RUN = 0.002, 0.1, 2.0


@dataclass(frozen=True)
class Estimate:
    """Expected seconds, without start-up and compilation."""

    training: float
    validation: float

    @property
    def total(self) -> float:
        return self.training + self.validation


def warm_up(experiment: Experiment) -> None:
    """Take a short training step, which compiles everything that is compiled on demand."""
    batch = experiment.source.train.batch(0, 0)
    # All rows, because a custom cell is compiled for their number.
    short = {
        name: getattr(batch, name)[:, :WARM_UP_TOKENS]
        for name in ("tokens_BT", "targets_BT", "reset_BT")
        if getattr(batch, name) is not None
    }
    _Rehearsal(experiment).step(batch._replace(**short))


def estimate(experiment: Experiment, num_samples: int = 10) -> Estimate:
    """Estimate the duration of a run that nothing stops early."""
    warm_up(experiment)
    rehearsal, data, trainer = _Rehearsal(experiment), experiment.data, experiment.trainer
    evaluation = experiment.source.evaluation
    rehearsal.step(experiment.source.train.batch(0, 0))  # creates the optimizer's state
    step = _mean_seconds(rehearsal.step, data.train_dataloader(), num_samples)
    look = _mean_seconds(rehearsal.validate, evaluation[VALIDATION], num_samples)

    num_steps, num_epochs = experiment.preflight.num_steps, trainer.max_epochs or 1
    interval: float = trainer.val_check_interval  # a share of an epoch, or a number of batches
    if isinstance(interval, int):
        interval /= batches_of_epoch(data.steps_per_epoch, trainer.limit_train_batches)
    num_validations = num_epochs / (trainer.check_val_every_n_epoch or 1) / interval
    num_looks = num_validations * sum(len(evaluation[name]) for name in data.validation_names)
    for callback in experiment.callbacks(StepValidation):
        callback.prepare(experiment.source, num_steps)
        num_looks += callback.num_batches(num_steps)
    overhead = num_steps * SECONDS_A_STEP + num_epochs * SECONDS_AN_EPOCH + SECONDS_A_RUN
    return Estimate(
        training=num_steps * step * trainer.accumulate_grad_batches + overhead,
        validation=look * num_looks,
    )


def _mean_seconds(
    process: Callable[[Batch], None], batches: Iterable[Batch], num_samples: int
) -> float:
    """The mean time over a sample of batches of all sizes."""
    by_size = sorted(islice(batches, MAX_BATCHES), key=lambda batch: batch.tokens_BT.numel())
    num_samples = min(num_samples, len(by_size))
    sample = [by_size[(2 * i + 1) * len(by_size) // (2 * num_samples)] for i in range(num_samples)]
    started = time.perf_counter()
    for batch in sample:
        process(batch)
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
        """Train on a batch; the states of the generators are restored."""
        self.module.train()
        devices = [] if self.device.type == "cpu" else [self.device]
        with torch.random.fork_rng(devices, device_type=self.device.type):
            loss = self._loss(batch)
            loss.backward()
            clip_gradients(self.optimizer, self.module.gradient_clip(0))
            self.optimizer.step()
            self.optimizer.zero_grad()
            loss.item()  # waits for an accelerator

    @torch.inference_mode()
    def validate(self, batch: Batch) -> None:
        """Evaluate a batch."""
        self.module.eval()
        self._loss(batch).item()  # waits for an accelerator

    def _loss(self, batch: Batch) -> torch.Tensor:
        with self.precision.forward_context():
            return self.module.loss(next(on_device_of(self.module, [batch])))
