"""The run's metrics by epoch and by step, and which of its validations was the best."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from newllm.data.source import VALIDATION
from newllm.training.metrics import RowSums, Scores, perplexity
from newllm.training.module import LanguageModule, data_of
from newllm.training.steps import Steps, Table

COLLECT_EVERY = 50  # steps between two updates of `steps.csv` and checks for a divergence
# Metrics of the training batches beside the loss, which the steps give.
TRAIN_METRICS = ("loss_batch_mean", "loss_known", "accuracy", "accuracy_sequence")


class Diverged(ArithmeticError):
    """The loss is no longer a finite number."""


class History(Callback):
    """Writes `metrics.csv` by epoch and `steps.csv` by optimizer step.

    `metrics.csv` has a row for the end of each epoch, and one with a fractional epoch for each
    validation before it. Epochs count from 1; `tokens` counts from the start of the run. Logs the
    training metrics (means over the tokens of the epoch), `grad/norm` (mean over its steps), and
    `train/loss` and `grad/norm` by step. Ends a run whose loss is no longer finite. Checkpoints
    contain it, so a resumed run has one history.

    It alone decides which validation is the best: the first one with the lowest `val/loss`.

    Attributes:
        epochs: the rows of `metrics.csv`.
        best: `val_loss`, `epoch` and `step` of the best validation; empty before there is one.
        is_best: whether the last validation is the best so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epochs: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self.is_best = False
        self._table = Table(folder / "metrics.csv")
        self._steps = Steps(folder / "steps.csv")
        self._first_step, self._first_token = 0, 0  # of this epoch
        self._batches: list[Tensor] = []  # of the current step: sum of losses, tokens
        self._train_scores = Scores(())
        self._validated: dict[str, float] = {}

    @property
    def steps(self) -> list[dict[str, float]]:
        """The rows of `steps.csv`."""
        return self._steps.rows()

    @property
    def last_loss(self) -> float:
        """The loss of a step that is at most `COLLECT_EVERY` steps old; NaN before the first."""
        return self._steps.last_loss

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._start_scores(trainer)

    def _start_scores(self, trainer: Trainer) -> None:
        available = data_of(trainer).source.train.metrics
        self._train_scores = Scores([name for name in TRAIN_METRICS if name in available])

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        rows: RowSums = outputs["rows"]
        self._train_scores.add(rows)
        self._batches.append(outputs["totals"])
        if trainer.global_step == len(self._steps):
            return  # the gradients are still accumulated
        loss, num_tokens = torch.stack(self._batches).sum(0)
        norm = module.gradient_norm
        assert isinstance(norm, Tensor)
        self._steps.add(loss, num_tokens, norm)
        self._batches = []
        if len(self._steps.pending) >= COLLECT_EVERY:
            self._collect(trainer)
            self._check_finite("train/loss", self.last_loss, trainer)

    def _collect(self, trainer: Trainer) -> None:
        for row in self._steps.collect():
            by_step = {f"{name}_by_step": row[name] for name in ("train/loss", "grad/norm")}
            for logger in trainer.loggers:
                logger.log_metrics(by_step, step=int(row["step"]))

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        # Not in `on_validation_end`: a callback that swaps averaged weights in for a validation
        # has swapped them out again by then.
        assert isinstance(module, LanguageModule)
        # Exact values: Lightning keeps logged ones in float32.
        self._validated = module.evaluated({VALIDATION: "val"})
        loss = self._validated.get("val/loss", math.nan)
        self.is_best = loss < self.best.get("val_loss", math.inf)
        if self.is_best:
            self.best = {"val_loss": loss, "epoch": _epoch(trainer), "step": trainer.global_step}

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        of_callbacks = {
            name: value.item()
            for name, value in trainer.callback_metrics.items()
            if not name.startswith(("train/", "grad/"))
        }
        self._validated = of_callbacks | self._validated
        loss = self._validated.get("val/loss", 0.0)
        if not trainer.is_last_batch:  # otherwise the epoch's row contains it
            self._collect(trainer)
            self._add_row(trainer, {})
        self._check_finite("val/loss", loss, trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = self._close_epoch(trainer)
        module.log_dict(metrics)
        self._check_finite("train/loss", metrics["train/loss"], trainer)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """Keep the metrics of the unfinished epoch."""
        if len(self._steps) > self._first_step:
            self._close_epoch(trainer)

    @staticmethod
    def _check_finite(metric: str, value: float, trainer: Trainer) -> None:
        if not math.isfinite(value):
            raise Diverged(
                f"{metric} is {value} in epoch {trainer.current_epoch + 1}, at step "
                f"{trainer.global_step}; try a lower optimizer.lr"
            )

    def _close_epoch(self, trainer: Trainer) -> dict[str, float]:
        """Add the row of the epoch; returns its training metrics."""
        self._collect(trainer)
        rows = self._steps.rows(self._first_step)
        ends = [self._first_token, *(int(row["tokens"]) for row in rows)]
        counts = [end - start for start, end in pairwise(ends)]
        losses = [row["train/loss"] for row in rows]
        loss = sum(map(operator.mul, losses, counts)) / max(sum(counts), 1)
        metrics = {
            "train/loss": loss,
            "train/perplexity": perplexity(loss),
            "grad/norm": sum(row["grad/norm"] for row in rows) / max(len(rows), 1),
            **{f"train/{name}": value for name, value in self._train_scores.metrics().items()},
        }
        self._first_step, self._first_token = len(self._steps), ends[-1]
        self._start_scores(trainer)
        self._add_row(trainer, metrics)
        return metrics

    def _add_row(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Add a row, or complete that of this step when an epoch ended early."""
        tokens = self._steps.num_tokens
        row = {"epoch": _epoch(trainer), "step": trainer.global_step, "tokens": tokens}
        row |= {**metrics, **self._validated}
        if completes := bool(self.epochs) and self.epochs[-1]["step"] == row["step"]:
            row |= self.epochs.pop()
        self.epochs.append(row)
        self._validated = {}
        by_tokens = {
            f"{name}_by_tokens": row[name] for name in ("train/loss", "val/loss") if name in row
        }
        for logger in trainer.loggers:
            logger.log_metrics(by_tokens, step=tokens)
        self._table.append([row], lambda: self.epochs, changes_others=completes)

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": list(self.epochs),
            "best": dict(self.best),
            "steps": self._steps.state_dict(),
            "first": (self._first_step, self._first_token),
            "scores": self._train_scores.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.best = state["epochs"], state["best"]
        self._steps.load_state_dict(state["steps"])
        self._first_step, self._first_token = state["first"]
        self._train_scores.load_state_dict(state["scores"])


def _epoch(trainer: Trainer) -> float:
    """Epochs that are done, including the share of the current one."""
    share = (trainer.fit_loop.batch_idx + 1) / trainer.num_training_batches
    return trainer.current_epoch + (1 if share >= 1 else round(share, 4))


def history_of(trainer: Trainer) -> History:
    """The history of a run."""
    callbacks: list[Callback] = getattr(trainer, "callbacks")  # noqa: B009  (untyped in Lightning)
    return next(callback for callback in callbacks if isinstance(callback, History))
