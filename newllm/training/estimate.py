"""How long a run will take, measured on a copy of its model before the first step.

Nothing of the run itself changes: no file, no weight, no random number. What is compiled remains.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import torch

from newllm.data.batch import Batch, on_device_of
from newllm.data.source import VALIDATION, Split
from newllm.training.clipping import clip_gradients
from newllm.training.clock import batches_of_epoch
from newllm.training.experiment import Experiment
from newllm.training.step_validation import StepValidation

WARM_UP_TOKENS = 8
NUM_SAMPLES = 10  # batches that are timed
# Overhead of Lightning, the loggers and the tables, measured on two cores.
SECONDS_A_STEP, SECONDS_AN_EPOCH, SECONDS_A_RUN = 0.002, 0.1, 2.0


def warm_up(experiment: Experiment) -> None:
    """Take a short training step, which compiles everything that is compiled on demand."""
    batch = experiment.data.share_of(experiment.source.train.batch(0, 0))
    # All rows, because a custom cell is compiled for their number.
    short = {
        name: getattr(batch, name)[:, :WARM_UP_TOKENS]
        for name in ("tokens_BT", "targets_BT", "reset_BT")
        if getattr(batch, name) is not None
    }
    _Rehearsal(experiment).step(batch._replace(**short))


def estimate(experiment: Experiment) -> tuple[float, float]:
    """Seconds of training and of validation, if nothing stops the run early.

    Start-up and compilation are not included.
    """
    warm_up(experiment)
    rehearsal, source, data = _Rehearsal(experiment), experiment.source, experiment.data
    rehearsal.step(source.train.batch(0, 0))  # creates the optimizer's state
    seconds_of_batch = _mean_seconds(
        lambda batch: rehearsal.step(data.share_of(batch)), source.train
    )
    seconds_of_look = _mean_seconds(rehearsal.validate, source.evaluation[VALIDATION])

    trainer, num_steps = experiment.trainer, experiment.module.num_steps
    num_batches = batches_of_epoch(data.steps_per_epoch, trainer.limit_train_batches)
    # Not `max_epochs`, since `max_steps` may end the run earlier.
    num_epochs = num_steps / math.ceil(num_batches / trainer.accumulate_grad_batches)
    interval: float = trainer.val_check_interval  # a share of an epoch, or a number of batches
    if isinstance(interval, int):
        interval /= num_batches
    validations = num_epochs / (trainer.check_val_every_n_epoch or 1) / interval
    num_validations = math.floor(validations + 1e-6)  # despite rounding
    num_looks = num_validations * sum(len(split) for split in data.val_dataloader())
    for callback in experiment.callbacks(StepValidation):
        callback.prepare(source, num_steps)
        num_looks += callback.num_batches(num_steps)
    overhead = num_steps * SECONDS_A_STEP + num_epochs * SECONDS_AN_EPOCH + SECONDS_A_RUN
    training = num_steps * trainer.accumulate_grad_batches * seconds_of_batch + overhead
    return training, num_looks * seconds_of_look


def _mean_seconds(process: Callable[[Batch], None], split: Split) -> float:
    """The mean time that batches take which are spread over a split."""
    num_samples = min(NUM_SAMPLES, split.num_batches or NUM_SAMPLES)
    num_batches = split.num_batches or num_samples
    numbers = [(2 * i + 1) * num_batches // (2 * num_samples) for i in range(num_samples)]
    batches = [split.batch(0, number) for number in numbers]
    started = time.perf_counter()
    for batch in batches:
        process(batch)
    return (time.perf_counter() - started) / num_samples


class _Rehearsal:
    """A copy of a run's module in the run's precision, and its optimizer."""

    def __init__(self, experiment: Experiment) -> None:
        self.precision = experiment.trainer.precision_plugin
        self.device = experiment.trainer.strategy.root_device
        self.module = copy.deepcopy(experiment.module).to(self.device)
        self.precision.convert_module(self.module)  # in place
        self.optimizer = self.module.make_optimizer(self.module.model)

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
