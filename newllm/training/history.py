"""The run's metrics as tables, and which of its validations was the best."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from newllm.data.source import VALIDATION
from newllm.runs.directory import write_text
from newllm.training.metrics import RowSums, Scores, perplexity
from newllm.training.module import LanguageModule
from newllm.training.steps import Steps, table

COLLECT_EVERY = 50  # steps: how old step losses on disk, and the news of a divergence, may be


class Diverged(ArithmeticError):
    """The loss is no longer a finite number."""


class History(Callback):
    """The run's metrics: `metrics.csv` by epoch, `steps.csv` by optimizer step.

    `metrics.csv` has a row for the end of each epoch, and one with a fraction of an epoch for each
    validation before it. Epochs count from 1; `tokens` are those trained on so far. Logs the
    metrics of training (means over the epoch's tokens), `grad/norm` (mean over its steps), and
    `train/loss` and `grad/norm` by step. Ends a run whose loss is no longer finite. It is part of a
    checkpoint, so a resumed run has one history.

    It alone decides which validation is the best: the first one with the lowest `val/loss`.
    """

    # What is made of the rows of the training batches; the steps give the loss and the norm.
    TRAIN_METRICS = ("loss_batch_mean", "loss_known", "accuracy", "accuracy_sequence")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epochs: list[dict[str, float]] = []
        self.best: dict[str, float] = {}  # `val_loss`, `epoch` and `step` of the best validation
        self.is_best = False  # whether the last validation is the best so far
        self._steps = Steps(folder / "steps.csv")
        self._first_step, self._first_token = 0, 0  # of this epoch
        self._batches: list[Tensor] = []  # of the step at hand: sum of losses, tokens
        self._train_scores = Scores(())
        self._train_state: dict[str, Any] | None = None
        self._validated: dict[str, float] = {}

    @property
    def steps(self) -> list[dict[str, float]]:
        """The rows of `steps.csv`."""
        return self._steps.rows()

    @property
    def last_loss(self) -> float:
        """The loss of a step that is at most `COLLECT_EVERY` steps old; NaN before the first."""
        return self._steps.last_loss

    def lowest(self, metric: str) -> float | None:
        """The minimum of a metric's own curve; None without a value."""
        values = [row.get(metric, math.nan) for row in self.epochs]
        return min(filter(math.isfinite, values), default=None)

    def best_row(self) -> Mapping[str, float]:
        """The row of the best validation; empty before there is one."""
        return next((row for row in self.epochs if row["step"] == self.best.get("step")), {})

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start_scores(trainer)
        if self._train_state:
            self._train_scores.load_state_dict(self._train_state)

    def _start_scores(self, trainer: Trainer) -> None:
        split = trainer.datamodule.source.train  # type: ignore[attr-defined]
        self._train_scores = Scores([name for name in self.TRAIN_METRICS if name in split.metrics])

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        rows: RowSums = outputs["rows"]
        self._train_scores.add(rows)
        self._batches.append(rows.sums_BK[:, :2].sum(0))
        if trainer.global_step == len(self._steps):
            return  # its gradients wait for those of the next batches
        loss, num_tokens = torch.stack(self._batches).sum(0)
        norm = module.gradient_norm
        assert isinstance(norm, Tensor)
        self._steps.add(loss, num_tokens, norm)
        self._batches = []
        if self._steps.num_pending >= COLLECT_EVERY:
            self._collect(trainer)
            self._check_finite("train/loss", self.last_loss, trainer)

    def _collect(self, trainer: Trainer) -> None:
        for row in self._steps.collect():
            by_step = {f"{name}_by_step": row[name] for name in ("train/loss", "grad/norm")}
            for logger in trainer.loggers:
                logger.log_metrics(by_step, step=int(row["step"]))

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        # Here, not in `on_validation_end`: weights that a callback puts in the place of the
        # model's for a validation are still there, and can be kept if they are the best.
        assert isinstance(module, LanguageModule)
        # Lightning keeps what is logged in float32; these figures are exact.
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
        if not trainer.is_last_batch:  # else it is a part of the epoch's row
            self._collect(trainer)
            self._add_row(trainer, {})
        self._check_finite("val/loss", loss, trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        means = self._close_epoch(trainer)
        module.log_dict(means)
        self._check_finite("train/loss", means["train/loss"], trainer)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """Keep what led to the end of a run that fails, diverges or is interrupted."""
        if len(self._steps) > self._first_step:
            self._close_epoch(trainer)

    @staticmethod
    def _check_finite(metric: str, value: float, trainer: Trainer) -> None:
        if not math.isfinite(value):
            raise Diverged(
                f"{metric} is {value} in epoch {trainer.current_epoch + 1}, at step "
                f"{trainer.global_step}; try a lower optimizer.lr or normalization=layernorm"
            )

    def _close_epoch(self, trainer: Trainer) -> dict[str, float]:
        """Add the epoch's row; returns its means over the training."""
        self._collect(trainer)
        rows = self._steps.rows(self._first_step)
        ends = [self._first_token, *(int(row["tokens"]) for row in rows)]
        self._first_step, self._first_token = len(self._steps), ends[-1]
        losses = [row["train/loss"] for row in rows]
        counts = [after - before for before, after in pairwise(ends)]
        loss = sum(map(operator.mul, losses, counts)) / max(sum(counts), 1)
        means = {
            "train/loss": loss,
            "train/perplexity": perplexity(loss),
            "grad/norm": sum(row["grad/norm"] for row in rows) / max(len(rows), 1),
        }
        scored = self._train_scores.metrics()
        self._start_scores(trainer)
        means |= {f"train/{name}": value for name, value in scored.items()}
        self._add_row(trainer, means)
        return means

    def _add_row(self, trainer: Trainer, means: Mapping[str, float]) -> None:
        """Add a row, or complete the one of this step, where an epoch ended early."""
        tokens = self._steps.num_tokens
        row = {"epoch": _epoch(trainer), "step": trainer.global_step, "tokens": tokens}
        row |= {**means, **self._validated}
        if self.epochs and self.epochs[-1]["step"] == row["step"]:
            row |= self.epochs.pop()
        self.epochs.append(row)
        self._validated = {}
        by_tokens = {
            f"{name}_by_tokens": row[name] for name in ("train/loss", "val/loss") if name in row
        }
        for logger in trainer.loggers:
            logger.log_metrics(by_tokens, step=tokens)
        write_table(self.folder / "metrics.csv", self.epochs)

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
        self._train_state = state["scores"]


def _epoch(trainer: Trainer) -> float:
    """Epochs that are done, the one at hand by the share of its batches."""
    share = (trainer.fit_loop.batch_idx + 1) / trainer.num_training_batches
    return trainer.current_epoch + (1 if share >= 1 else round(share, 4))


def write_table(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write rows as CSV; a column for each name that occurs."""
    write_text(path, table(list(dict.fromkeys(name for row in rows for name in row)), rows))
