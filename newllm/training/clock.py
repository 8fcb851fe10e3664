"""When things happen that happen every so often, in epochs or in steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, OmegaConf

from newllm.config.build import ConfigFault
from newllm.config.composing import conf_directory
from newllm.data.module import DataModule
from newllm.data.source import TEST, Source, Split
from newllm.training.history import History

SHARE = 0.1  # of the training's time, for what is evaluated beside it
COST_OF_TRAINING = 3  # forward passes: the backward pass takes about twice as long as the forward
MOST_VALIDATIONS = 100  # of a run, where `auto` chooses
AUTO = "auto"  # trainer.val_check_interval: as often as takes at most `SHARE`


@dataclass(frozen=True)
class Clock:
    """How long an epoch is, and when the validations are.

    A source without an end has no epochs of its own: one is what lies between two validations.

    Attributes:
        epoch_length: training batches in an epoch.
        arguments: of Lightning's trainer, in the place of those of the configuration.
    """

    epoch_length: int
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: DictConfig, source: Source) -> Clock:
        """The clock of a configuration.

        Raises:
            ConfigFault: it counts epochs that the source does not have, or what `auto` decides on
                is chosen as well.
        """
        num_batches, trainer = source.train.num_batches, config.trainer
        interval = trainer.get("val_check_interval")
        if num_batches is None:
            return cls._without_end(config, source)
        if interval != AUTO:
            return cls(num_batches)
        if (every := trainer.get("check_val_every_n_epoch", 1)) != 1:
            raise ConfigFault(
                [
                    f"trainer.check_val_every_n_epoch={every}: is set by "
                    "trainer.val_check_interval=auto; remove one of the two"
                ]
            )
        limit = trainer.get("limit_train_batches", 1.0)
        an_epoch = batches_of_epoch(num_batches, limit)
        interval = _cheap_interval(source, _last_batch(config, an_epoch))
        if interval > an_epoch:
            num_epochs = min(-(-interval // an_epoch), trainer.max_epochs or 1)
            chosen = {"val_check_interval": 1.0, "check_val_every_n_epoch": num_epochs}
            return cls(num_batches, chosen)
        times = max(1, an_epoch // interval)
        return cls(num_batches, {"val_check_interval": max(1, an_epoch // times)})

    @classmethod
    def _without_end(cls, config: DictConfig, source: Source) -> Clock:
        if faults := list(_epoch_faults(config, source)):
            raise ConfigFault(faults)
        num_batches = _last_batch(config, None)
        interval: Any = config.trainer.get("val_check_interval") or AUTO
        if interval == AUTO:
            # Whole steps, and a validation near the end.
            times = max(1, num_batches // _cheap_interval(source, num_batches))
            interval = max(1, num_batches // times // _a_step(config)) * _a_step(config)
        interval = min(interval, num_batches)
        num_epochs = -(-num_batches // interval)
        return cls(interval, {"val_check_interval": 1.0, "max_epochs": num_epochs})


def _epoch_faults(config: DictConfig, source: Source) -> Iterator[str]:
    """What counts epochs where there are none."""
    trainer, reason = config.trainer, f"the training data of {source.name} is endless"
    if trainer.max_steps < 1:
        yield f"trainer.max_steps={trainer.max_steps}: {reason}; set it to a number of steps"
    if trainer.max_epochs != (usual := _epochs_of_recipe(config)):
        yield (
            f"trainer.max_epochs={trainer.max_epochs}: {reason}; leave it at {usual} and use "
            "trainer.max_steps"
        )
    interval = trainer.get("val_check_interval")
    if not isinstance(interval, int | None) and interval != AUTO:
        yield f"trainer.val_check_interval={interval}: {reason}; set a number of batches"
    elif isinstance(interval, int) and interval % _a_step(config):
        yield (
            f"trainer.val_check_interval={interval}: must be a multiple of "
            f"trainer.accumulate_grad_batches={_a_step(config)}"
        )
    if trainer.get("limit_train_batches", 1.0) != 1.0:
        yield f"trainer.limit_train_batches={trainer.limit_train_batches}: {reason}; remove it"
    if config.schedule and config.schedule.get("interval") == "epoch":
        yield f"schedule.interval=epoch: {reason}; use a schedule by steps"
    if len(config.recipe.gradient_clip) > 1:
        yield f"recipe.gradient_clip: {reason} and has no epochs; use [[0,NORM]]"


def _epochs_of_recipe(config: DictConfig) -> int:
    """What the recipe's file says, with which nobody has chosen anything."""
    file = conf_directory() / "recipe" / f"{config.recipe.name}.yaml"
    recipe = OmegaConf.load(file).recipe if file.is_file() else config.recipe
    return int(recipe.max_epochs)


def _a_step(config: DictConfig) -> int:
    """Batches of an optimizer step."""
    return int(config.trainer.get("accumulate_grad_batches") or 1)


def _last_batch(config: DictConfig, an_epoch: int | None) -> int:
    """Training batches of the whole run, given those of an epoch."""
    trainer = config.trainer
    by_steps = trainer.max_steps * _a_step(config)
    if an_epoch is None:
        return int(by_steps)
    by_epochs = an_epoch * (trainer.max_epochs or 1)
    return int(by_epochs if trainer.max_steps < 0 else min(by_epochs, by_steps))


def batches_of_epoch(num_batches: int, limit: float) -> int:
    """Batches that an epoch takes, of so many; `limit` is a share of them or a number."""
    return int(num_batches * limit) if isinstance(limit, float) else min(num_batches, limit)


def _cheap_interval(source: Source, num_batches: int) -> int:
    """Training batches between validations that take a tenth of the training's time.

    In a run of so many batches there are at most 100 of them.
    """
    splits = [split for name, split in source.evaluation.items() if name != TEST]
    positions = sum(_mean_positions(split) * len(split) for split in splits)
    affordable = math.ceil(steps_that_pay(positions, _mean_positions(source.train)))
    return max(1, affordable, math.ceil(num_batches / MOST_VALIDATIONS))


def steps_that_pay(num_evaluated: float, num_trained: float) -> float:
    """Training steps of which an evaluation takes its share of the time.

    Args:
        num_evaluated: tokens that are evaluated.
        num_trained: tokens of a training step.
    """
    return num_evaluated / (SHARE * COST_OF_TRAINING * num_trained)


def _mean_positions(split: Split) -> float:
    """Positions of a batch, from the first, the middle and the last one."""
    last = 2 if split.num_batches is None else split.num_batches - 1
    numbers = {0, last // 2, last}
    return sum(split.batch(0, number).tokens_BT.numel() for number in numbers) / len(numbers)


class Every:
    """Every so many epochs or, if that is given, every so many steps.

    What looks at a validation is due at the first one, then at the first one after so many steps.
    """

    def __init__(self, num_epochs: int, num_steps: int | None = None) -> None:
        self._num_epochs, self._num_steps = num_epochs, num_steps
        self._times = -1

    def is_due(self, trainer: Trainer) -> bool:
        """Whether it is due at the validation at hand; asked once for each."""
        if self._num_steps is None:
            return is_due(trainer, self._num_epochs)
        before, self._times = self._times, trainer.global_step // self._num_steps
        return self._times > before


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether this epoch is one to look at: the first, every n-th, the last one planned."""
    epoch = trainer.current_epoch + 1
    return epoch in (1, trainer.max_epochs) or epoch % every_n_epochs == 0


def history_of(trainer: Trainer) -> History:
    """The history of a run."""
    callbacks: list[Callback] = getattr(trainer, "callbacks")  # noqa: B009  (untyped in Lightning)
    return next(callback for callback in callbacks if isinstance(callback, History))


def data_of(trainer: Trainer) -> DataModule:
    """The data of a run."""
    data = getattr(trainer, "datamodule")  # noqa: B009  (untyped in Lightning)
    assert isinstance(data, DataModule)
    return data
