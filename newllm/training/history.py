"""The run's metrics as tables."""

from __future__ import annotations

import csv
import io
import math
import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from newllm.runs.directory import write_text
from newllm.training.module import LanguageModule, SentenceScores, perplexity


class History(Callback):
    """The run's metrics as tables: `metrics.csv` by epoch, `steps.csv` by optimizer step.

    `metrics.csv` has a row for each epoch, and one with a fraction of an epoch for each validation
    before its end. Epochs count from 1; `tokens` are those seen in training so far. Logs the
    metrics of training (means over the epoch's tokens), `grad/norm` (mean over its steps), and
    `train/loss` and `grad/norm` by step. It is part of a checkpoint, so a resumed run has one
    history.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epochs: list[dict[str, float]] = []
        self.steps: list[dict[str, float]] = []
        self._num_steps_before = 0  # those of earlier epochs
        # Of steps that are no rows yet, and of the batches of the step at hand: tensors, so that
        # nothing waits for them.
        self._pending: list[dict[str, Tensor]] = []
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._validated: dict[str, float] = {}
        self._module: LanguageModule | None = None

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        assert isinstance(module, LanguageModule)
        self._module = module

    @property
    def num_tokens(self) -> int:
        """Tokens seen in training, up to the last row."""
        return int(self.steps[-1]["tokens"]) if self.steps else 0

    def best(self, metric: str) -> Mapping[str, float]:
        """The row with the lowest value of a metric, the first of these; empty without a value."""
        rows = [row for row in self.epochs if math.isfinite(row.get(metric, math.nan))]
        return min(rows, key=lambda row: row[metric], default={})

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append((outputs["loss_sum"], outputs["num_tokens"]))
        if trainer.global_step == len(self.steps) + len(self._pending):
            return  # its gradients wait for those of the next batches
        sums, counts = (torch.stack(column) for column in zip(*self._batches, strict=True))
        norm = module.gradient_norm
        assert isinstance(norm, Tensor)
        loss = sums.sum() / counts.sum()
        self._pending.append({"loss": loss, "num_tokens": counts.sum(), "gradient_norm": norm})
        self._batches = []

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validated = {
            name: value.item()
            for name, value in trainer.callback_metrics.items()
            if not name.startswith(("train/", "grad/"))
        }
        # What is logged is rounded; `best.ckpt` is chosen by these.
        assert self._module is not None
        scores = self._module.evaluation_scores.metrics()
        self._validated |= {f"val/{name}": value for name, value in scores.items()}
        if trainer.is_last_batch:
            return  # a part of the epoch's row
        self._close_steps(trainer)
        done = trainer.fit_loop.batch_idx + 1
        part = round(done / trainer.num_training_batches, 4)
        self._add_row(trainer, trainer.current_epoch + part, {})

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        means = self._close_epoch(trainer)
        module.log_dict(means)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        write_table(self.folder / "steps.csv", self.steps)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """Keep what led to the end of a run that fails, diverges or is interrupted."""
        if self._pending:
            self._close_epoch(trainer)
        write_table(self.folder / "steps.csv", self.steps)

    def _close_steps(self, trainer: Trainer) -> None:
        """Turn the pending steps into rows."""
        pending, self._pending = self._pending, []
        for step in pending:
            row = {
                "step": len(self.steps) + 1,
                "tokens": self.num_tokens + int(step["num_tokens"].item()),
                "train/loss": step["loss"].item(),
                "grad/norm": step["gradient_norm"].item(),
            }
            self.steps.append(row)
            by_step = {f"{name}_by_step": row[name] for name in ("train/loss", "grad/norm")}
            for logger in trainer.loggers:
                logger.log_metrics(by_step, step=len(self.steps))

    def _close_epoch(self, trainer: Trainer) -> dict[str, float]:
        """Add the epoch's row; returns its means over the training."""
        self._close_steps(trainer)
        first, self._num_steps_before = self._num_steps_before, len(self.steps)
        before = self.steps[first - 1]["tokens"] if first else 0
        rows = self.steps[first:]
        counts = [b - a for a, b in pairwise([before, *(row["tokens"] for row in rows)])]
        losses = [row["train/loss"] for row in rows]
        loss = sum(map(operator.mul, losses, counts)) / max(sum(counts), 1)
        means = {
            "train/loss": loss,
            "train/perplexity": perplexity(loss),
            "grad/norm": sum(row["grad/norm"] for row in rows) / max(len(rows), 1),
        }
        means |= self._close_scores()
        self._add_row(trainer, trainer.current_epoch + 1, means)
        return means

    def _close_scores(self) -> dict[str, float]:
        """The metrics of the epoch's training batches, but for those that the steps give."""
        assert self._module is not None
        metrics = self._module.train_scores.metrics()
        self._module.train_scores = SentenceScores()
        return {
            f"train/{name}": metrics[name]
            for name in ("loss_batch_mean", "loss_known", "accuracy")
            if name in metrics
        }

    def _add_row(self, trainer: Trainer, epoch: float, means: dict[str, float]) -> None:
        position = {"epoch": epoch, "step": trainer.global_step, "tokens": self.num_tokens}
        self.epochs.append(position | means | self._validated)
        self._validated = {}
        by_tokens = {
            f"{name}_by_tokens": self.epochs[-1][name]
            for name in ("train/loss", "val/loss")
            if name in self.epochs[-1]
        }
        for logger in trainer.loggers:
            logger.log_metrics(by_tokens, step=self.num_tokens)
        write_table(self.folder / "metrics.csv", self.epochs)

    def state_dict(self) -> dict[str, Any]:
        assert self._module is not None
        return {
            "epochs": list(self.epochs),
            "steps": list(self.steps),
            "num_steps_before": self._num_steps_before,
            "pending": list(self._pending),
            "scores": self._module.train_scores.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.steps = state["epochs"], state["steps"]
        self._num_steps_before, self._pending = state["num_steps_before"], state["pending"]
        assert self._module is not None
        self._module.train_scores.load_state_dict(state["scores"])


def write_table(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
