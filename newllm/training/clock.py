"""The length of an epoch, and everything that happens at intervals of epochs or steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from newllm.config.build import ConfigFault
from newllm.config.composing import conf_directory
from newllm.data.source import TEST, Source, Split
from newllm.training.tokens import steps_of_tokens

SHARE = 0.1  # of the training time, at most, for periodic evaluation
COST_OF_TRAINING = 3  # in forward passes: a backward pass takes about two
MAX_VALIDATIONS = 100  # in a run whose interval is `auto`
AUTO = "auto"  # value of trainer.val_check_interval: as often as `SHARE` allows


@dataclass(frozen=True)
class Clock:
    """How long an epoch is, and when validations take place.

    An endless source has no epochs of its own: an epoch then lasts from one validation to the next.

    Attributes:
        epoch_length: training batches in an epoch.
        arguments: for Lightning's trainer, which replace those of the configuration.
    """

    epoch_length: int
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: DictConfig, source: Source) -> Clock:
        """The clock of a configuration.

        Raises:
            ConfigFault: the configuration counts epochs of an endless source, or sets what `auto`
                determines.
        """
        if config.get("max_tokens") is not None:
            return cls._of_tokens(config.copy(), source)
        return cls._of_steps(config, source)

    @classmethod
    def _of_tokens(cls, config: DictConfig, source: Source) -> Clock:
        """The clock of a run whose tokens decide its steps; epochs end where those of the data do.

        Validations are spread over the run, unless the configuration says when they take place.
        """
        trainer, num_batches = config.trainer, source.train.num_batches
        batches_per_step = trainer.get("accumulate_grad_batches") or 1
        if num_batches is None:
            trainer.max_steps = steps_of_tokens(config.max_tokens, source, batches_per_step)
            clock = cls._of_steps(config, source)
            return cls(clock.epoch_length, {"max_steps": trainer.max_steps} | clock.arguments)
        epoch = max(1, batches_of_epoch(num_batches, trainer.get("limit_train_batches", 1.0)))
        steps_per_epoch = math.ceil(epoch / batches_per_step)
        trainer.max_steps = steps_of_tokens(config.max_tokens, source, epoch / steps_per_epoch)
        trainer.max_epochs = math.ceil(trainer.max_steps / steps_per_epoch)
        arguments: dict[str, Any] = {name: trainer[name] for name in ("max_steps", "max_epochs")}
        says_nothing = trainer.get("check_val_every_n_epoch", 1) == 1
        if says_nothing and trainer.get("val_check_interval") in (None, AUTO):
            num_epochs, num_steps = divmod(trainer.max_steps, steps_per_epoch)
            last_batch = num_epochs * epoch + num_steps * batches_per_step
            times = max(1, last_batch // _affordable_interval(source, last_batch))
            arguments |= {
                "val_check_interval": last_batch // times,
                "check_val_every_n_epoch": None,  # counts batches across epochs
            }
            return cls(num_batches, arguments)
        clock = cls._of_steps(config, source)
        return cls(num_batches, arguments | clock.arguments)

    @classmethod
    def _of_steps(cls, config: DictConfig, source: Source) -> Clock:
        num_batches, trainer = source.train.num_batches, config.trainer
        limit = trainer.get("limit_train_batches", 1.0)
        batches_per_step = trainer.get("accumulate_grad_batches") or 1
        if num_batches is None:
            if not isinstance(limit, int) or trainer.max_steps >= 1:
                return cls._endless(config, source, batches_per_step)
            num_batches = limit  # makes epochs of endless data
        if trainer.get("val_check_interval") != AUTO:
            return cls(num_batches)
        if (every := trainer.get("check_val_every_n_epoch", 1)) != 1:
            raise ConfigFault(
                [
                    f"trainer.check_val_every_n_epoch={every}: is set by "
                    "trainer.val_check_interval=auto; remove one of the two"
                ]
            )
        epoch = max(1, batches_of_epoch(num_batches, limit))
        num_epochs = trainer.max_epochs or 1
        last_batch = epoch * num_epochs
        if trainer.max_steps >= 0:
            last_batch = min(last_batch, trainer.max_steps * batches_per_step)
        interval = _affordable_interval(source, last_batch)
        if interval > epoch:
            every = min(math.ceil(interval / epoch), num_epochs)
            return cls(num_batches, {"val_check_interval": 1.0, "check_val_every_n_epoch": every})
        times = max(1, epoch // interval)
        return cls(num_batches, {"val_check_interval": max(1, epoch // times)})

    @classmethod
    def _endless(cls, config: DictConfig, source: Source, batches_per_step: int) -> Clock:
        if faults := list(_epoch_faults(config, source, batches_per_step)):
            raise ConfigFault(faults)
        num_batches = config.trainer.max_steps * batches_per_step
        interval: Any = config.trainer.get("val_check_interval") or AUTO
        if interval == AUTO:
            # Whole steps, with a validation near the end.
            times = max(1, num_batches // _affordable_interval(source, num_batches))
            interval = max(1, config.trainer.max_steps // times) * batches_per_step
        interval = min(interval, num_batches)
        num_epochs = math.ceil(num_batches / interval)
        return cls(interval, {"val_check_interval": 1.0, "max_epochs": num_epochs})


def _epoch_faults(config: DictConfig, source: Source, batches_per_step: int) -> Iterator[str]:
    """Settings in epochs, which an endless source does not have."""
    trainer, reason = config.trainer, f"the training data of {source.name} is endless"
    if trainer.max_steps < 1:
        yield f"trainer.max_steps={trainer.max_steps}: {reason}; set it to a number of steps"
    file = conf_directory() / "recipe" / f"{config.recipe.name}.yaml"
    recipe = OmegaConf.merge(config.recipe, OmegaConf.load(file).recipe if file.is_file() else {})
    if trainer.max_epochs != recipe.max_epochs:
        yield (
            f"trainer.max_epochs={trainer.max_epochs}: {reason}; leave it at {recipe.max_epochs} "
            "and use trainer.max_steps"
        )
    interval = trainer.get("val_check_interval")
    if not isinstance(interval, int | None) and interval != AUTO:
        yield f"trainer.val_check_interval={interval}: {reason}; set a number of batches"
    elif isinstance(interval, int) and interval % batches_per_step:
        yield (
            f"trainer.val_check_interval={interval}: must be a multiple of "
            f"trainer.accumulate_grad_batches={batches_per_step}"
        )
    if trainer.get("limit_train_batches", 1.0) != 1.0:
        yield f"trainer.limit_train_batches={trainer.limit_train_batches}: {reason}; remove it"
    if config.schedule and config.schedule.get("interval") == "epoch":
        yield f"schedule.interval=epoch: {reason}; use a schedule by steps"
    if len(config.recipe.gradient_clip) > 1:
        yield f"recipe.gradient_clip: {reason} and has no epochs; use [[0,NORM]]"


def batches_of_epoch(num_batches: int, limit: float) -> int:
    """Batches of a limited epoch; `limit` is a share (float) or a number (int)."""
    return int(num_batches * limit) if isinstance(limit, float) else min(num_batches, limit)


def _affordable_interval(source: Source, num_batches: int) -> int:
    """Training batches between two validations, in a run of `num_batches`."""
    splits = [
        split for name, split in source.evaluation.items() if split.while_training and name != TEST
    ]
    positions = sum(_mean_positions(split) * len(split) for split in splits)
    affordable = math.ceil(steps_that_pay(positions, _mean_positions(source.train)))
    return max(1, affordable, math.ceil(num_batches / MAX_VALIDATIONS))


def steps_that_pay(num_evaluated: float, num_trained: float) -> float:
    """Training steps after which an evaluation has taken its share of the time.

    Args:
        num_evaluated: tokens of the evaluation.
        num_trained: tokens of a training step.
    """
    return num_evaluated / (SHARE * COST_OF_TRAINING * num_trained)


def _mean_positions(split: Split) -> float:
    """Positions of a batch, from the first, the middle and the last one."""
    last = 2 if split.num_batches is None else split.num_batches - 1
    numbers = {0, last // 2, last}
    return sum(split.batch(0, number).tokens_BT.numel() for number in numbers) / len(numbers)


class Every:
    """An interval in epochs or, if `num_steps` is given, in steps.

    What looks at validations is due at the first one, then at the first one after each interval.
    """

    def __init__(self, num_epochs: int, num_steps: int | None = None) -> None:
        self._num_epochs, self._num_steps = num_epochs, num_steps
        self._times = -1

    def is_due(self, trainer: Trainer) -> bool:
        """Whether it is due at the current validation; to be called once for each."""
        if self._num_steps is None:
            return is_due(trainer, self._num_epochs)
        before, self._times = self._times, trainer.global_step // self._num_steps
        return self._times > before


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether this is the first epoch, an n-th one, or the last one planned."""
    epoch = trainer.current_epoch + 1
    return epoch in (1, trainer.max_epochs) or epoch % every_n_epochs == 0
