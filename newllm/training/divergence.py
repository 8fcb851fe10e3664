"""The end of a run whose loss is no longer finite."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer


class Diverged(ArithmeticError):
    """The loss is no longer a finite number."""


class StopOnDivergence(Callback):
    """Ends a run whose loss is no longer finite; it would never recover."""

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._check(trainer, "val/loss")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._check(trainer, "train/loss")

    @staticmethod
    def _check(trainer: Trainer, metric: str) -> None:
        value = trainer.callback_metrics.get(metric)
        if value is not None and not math.isfinite(value.item()):
            raise Diverged(
                f"{metric} is {value.item()} in epoch {trainer.current_epoch + 1}; "
                "try a lower optimizer.lr or normalization=layernorm"
            )
