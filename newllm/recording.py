"""What every run directory holds: the metrics as tables, the checkpoints, and an end by reason."""

from __future__ import annotations

import csv
import io
import math
import operator
import random
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from newllm.module import LanguageModule, SentenceScores, perplexity
from newllm.runs import write_text, written_whole


class Diverged(ArithmeticError):
    """The loss is no longer a finite number."""


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


class Checkpoints(Callback):
    """`best.ckpt`: the weights with the lowest validation loss. `last.ckpt`: all that goes on.

    Both are written at most every `interval` seconds, and the best at the end: writing them at
    every epoch would cost a small model more time than its training. SIGINT and SIGTERM let the
    step at hand and the validation after it come to their end, and then end the run with both
    written; a second one does not wait.

    The time to write is just before a batch is trained on. All that belongs to the batch before it
    is over by then: its step, a validation, the end of its epoch with schedules and early stopping.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, folder: Path, keep_last: bool, interval: float = 60.0) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.interval = interval
        self._best_loss = math.inf
        self._best: dict[str, Any] | None = None
        self._random_states: dict[str, Any] | None = None  # of the run that goes on
        self._written_at = time.monotonic()
        self._is_asked_to_stop = False
        self._handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                number: signal.signal(number, self._ask)
                for number in self.SIGNALS
                if signal.getsignal(number) != signal.SIG_IGN
            }

    def _ask(self, *_: object) -> None:
        if self._is_asked_to_stop:
            raise KeyboardInterrupt
        self._is_asked_to_stop = True

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        # Here, not in `on_validation_end`: callbacks that put averaged weights in the place of the
        # model's for a validation take them away again right after this.
        assert isinstance(module, LanguageModule)
        loss = module.evaluation_scores.metrics().get("loss", math.nan)
        if loss < self._best_loss and not trainer.sanity_checking:
            self._best_loss = loss
            weights = {name: value.clone() for name, value in module.model.state_dict().items()}
            self._best = {"model": weights, "epoch": trainer.current_epoch + 1, "val_loss": loss}

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._random_states is not None:
            # Not earlier: Lightning itself draws numbers between loading and the first batch.
            _set_random_states(self._random_states)
            self._random_states = None
            # Lightning would count one more, and log later epochs at a step too far.
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if batch_idx % trainer.accumulate_grad_batches:
            return  # a checkpoint holds no gradients
        is_due = time.monotonic() - self._written_at > self.interval
        if is_due or self._is_asked_to_stop:
            self._write_best()
            self._write_last(trainer)
            self._written_at = time.monotonic()
        if self._is_asked_to_stop:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._restore_handlers()
        self._write_best()
        if self.keep_last:
            self._write_last(trainer)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        self._restore_handlers()
        self._write_best()

    def _write_best(self) -> None:
        if self._best is None:
            return
        self.folder.mkdir(exist_ok=True)
        with written_whole(self.folder / "best.ckpt") as partial:
            torch.save(self._best, partial)
        self._best = None

    def _write_last(self, trainer: Trainer) -> None:
        self.folder.mkdir(exist_ok=True)
        with written_whole(self.folder / "last.ckpt") as partial:
            trainer.save_checkpoint(partial)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Lightning would take an epoch for ended whose last batch has only been fetched.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self._best_loss, "random_states": _random_states()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best_loss, self._random_states = state["best_loss"], state["random_states"]


def _random_states() -> dict[str, Any]:
    """The states of all generators that a run may draw from, as plain values."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
    }


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])


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
