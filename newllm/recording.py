"""What every run directory holds: the metrics as tables, the checkpoints, and an end by reason."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from newllm.runs import write_text


class Diverged(ArithmeticError):
    """The loss is no longer a finite number."""


class History(Callback):
    """The run's metrics: one row an epoch in `metrics.csv`, one a step in `steps.csv`.

    Epochs count from 1. Losses of steps stay tensors until the epoch ends, so that reading them
    never makes the training wait.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epochs: list[dict[str, float]] = []
        self.steps: list[dict[str, float]] = []
        self._pending: list[tuple[int, Tensor, Tensor]] = []

    def best(self, metric: str) -> tuple[float | None, int | None]:
        """The lowest value of a metric over the epochs, and its epoch; None without a value."""
        pairs = [(row[metric], int(row["epoch"])) for row in self.epochs if metric in row]
        finite = [pair for pair in pairs if math.isfinite(pair[0])]
        return min(finite) if finite else (None, None)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        norm = module.gradient_norm
        assert isinstance(norm, Tensor)
        self._pending.append((trainer.global_step, outputs["loss"].detach(), norm))

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        first = len(self.steps)
        for step, loss, norm in self._pending:
            row = {"step": step, "train/loss": loss.item(), "grad/norm": norm.item()}
            self.steps.append(row)
        self._pending.clear()
        new = self.steps[first:]
        norms = [row["grad/norm"] for row in new if math.isfinite(row["grad/norm"])]
        module.log("grad/norm", sum(norms) / len(norms) if norms else math.nan)
        for row in new:
            by_step = {f"{name}_by_step": row[name] for name in ("train/loss", "grad/norm")}
            for logger in trainer.loggers:
                logger.log_metrics(by_step, step=int(row["step"]))
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        metrics["train/perplexity"] = math.exp(min(metrics["train/loss"], 700))
        position = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        self.epochs.append(position | metrics)
        _write_table(self.folder / "metrics.csv", self.epochs)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        _write_table(self.folder / "steps.csv", self.steps)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.steps = state["epochs"], state["steps"]


def _write_table(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


class Checkpoints(Callback):
    """`best.ckpt`: the weights with the lowest validation loss. `last.ckpt`: all that goes on.

    Both are written at most every `interval` seconds, and the best at the end: writing them at
    every epoch would cost a small model more time than its training.
    """

    def __init__(self, folder: Path, keep_last: bool, interval: float = 60.0) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.interval = interval
        self._best_loss = math.inf
        self._best: dict[str, Any] | None = None
        self._written_at = time.monotonic()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        loss = trainer.callback_metrics["val/loss"].item()
        if loss < self._best_loss:
            self._best_loss = loss
            weights = {name: value.clone() for name, value in _weights(module).items()}
            self._best = {"model": weights, "epoch": trainer.current_epoch + 1, "val_loss": loss}

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._written_at > self.interval:
            self._write_best()
            self._write_last(trainer)
            self._written_at = time.monotonic()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._write_best()
        last = self.folder / "last.ckpt"
        if self.keep_last:
            self._write_last(trainer)
        else:
            last.unlink(missing_ok=True)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        self._write_best()

    def _write_best(self) -> None:
        if self._best is None:
            return
        self.folder.mkdir(exist_ok=True)
        partial = self.folder / ".best.ckpt.partial"
        torch.save(self._best, partial)
        partial.replace(self.folder / "best.ckpt")
        self._best = None

    def _write_last(self, trainer: Trainer) -> None:
        self.folder.mkdir(exist_ok=True)
        partial = self.folder / ".last.ckpt.partial"
        trainer.save_checkpoint(partial)
        partial.replace(self.folder / "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self._best_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best_loss = state["best_loss"]


def _weights(module: LightningModule) -> dict[str, Tensor]:
    model = module.model
    assert isinstance(model, torch.nn.Module)
    return model.state_dict()


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
