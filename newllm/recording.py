"""What every run directory holds: the metrics as tables, the checkpoints, and an end by reason."""

from __future__ import annotations

import csv
import io
import math
import operator
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from newllm.data.tokenizer import PAD
from newllm.module import LanguageModule, SentenceScores, perplexity
from newllm.runs import write_text, written_whole


class Diverged(ArithmeticError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class _Step:
    """What is known of a step at once; tensors, so that nothing waits for them."""

    step: int
    loss: Tensor
    num_tokens: Tensor
    gradient_norm: Tensor


class History(Callback):
    """The run's metrics: one row an epoch in `metrics.csv`, one a step in `steps.csv`.

    Epochs count from 1; `tokens` are those seen so far. Logs the metrics of training (means over
    the epoch's tokens), `grad/norm` (mean over its steps), and `train/loss` and `grad/norm` by
    step. It is part of a checkpoint, so a resumed run has one history.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.epochs: list[dict[str, float]] = []
        self.steps: list[dict[str, float]] = []
        self.num_tokens = 0  # seen in training
        self._pending: list[_Step] = []
        self._is_validated = False
        self._module: LanguageModule | None = None

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        assert isinstance(module, LanguageModule)
        self._module = module

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
        num_tokens = (batch.targets_BT != PAD).sum()
        step = _Step(trainer.global_step, outputs["loss"].detach(), num_tokens, norm)
        self._pending.append(step)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._is_validated = True

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        means = self._close_steps(trainer) | self._close_scores()
        module.log_dict(means)
        self._close_epoch(trainer, means)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        write_table(self.folder / "steps.csv", self.steps)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """Keep what led to the end of a run that fails, diverges or is interrupted."""
        if self._pending:
            self._close_epoch(trainer, self._close_steps(trainer) | self._close_scores())
        write_table(self.folder / "steps.csv", self.steps)

    def _close_steps(self, trainer: Trainer) -> dict[str, float]:
        """Turn the pending steps into rows; return their means."""
        pending, self._pending = self._pending, []
        losses, norms, weights = [], [], []
        for step in pending:
            losses.append(step.loss.item())
            norms.append(step.gradient_norm.item())
            weights.append(step.num_tokens.item())
            row = {"step": step.step, "train/loss": losses[-1], "grad/norm": norms[-1]}
            self.steps.append(row)
            by_step = {f"{name}_by_step": row[name] for name in ("train/loss", "grad/norm")}
            for logger in trainer.loggers:
                logger.log_metrics(by_step, step=step.step)
        self.num_tokens += int(sum(weights))
        loss = sum(map(operator.mul, losses, weights)) / max(sum(weights), 1)
        return {
            "train/loss": loss,
            "train/perplexity": perplexity(loss),
            "grad/norm": sum(norms) / max(len(norms), 1),
        }

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

    def _close_epoch(self, trainer: Trainer, means: dict[str, float]) -> None:
        validated = {
            name: value.item()
            for name, value in trainer.callback_metrics.items()
            if name not in means and self._is_validated
        }
        self._is_validated = False
        position = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "tokens": self.num_tokens,
        }
        self.epochs.append(position | means | validated)
        by_tokens = {
            f"{name}_by_tokens": self.epochs[-1][name]
            for name in ("train/loss", "val/loss")
            if name in self.epochs[-1]
        }
        for logger in trainer.loggers:
            logger.log_metrics(by_tokens, step=self.num_tokens)
        write_table(self.folder / "metrics.csv", self.epochs)

    def state_dict(self) -> dict[str, Any]:
        pending = [
            (step.step, step.loss, step.num_tokens, step.gradient_norm) for step in self._pending
        ]
        assert self._module is not None
        return {
            "epochs": list(self.epochs),
            "steps": list(self.steps),
            "num_tokens": self.num_tokens,
            "pending": pending,
            "scores": self._module.train_scores.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs, self.steps = state["epochs"], state["steps"]
        self.num_tokens = state["num_tokens"]
        self._pending = [_Step(*fields) for fields in state["pending"]]
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
    step at hand come to its end, and then end the run with both written; a second one does not
    wait.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, folder: Path, keep_last: bool, interval: float = 60.0) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.interval = interval
        self._best_loss = math.inf
        self._best: dict[str, Any] | None = None
        self._random_state: Tensor | None = None
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

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        loss = trainer.callback_metrics["val/loss"].item()
        if loss < self._best_loss:
            self._best_loss = loss
            weights = {name: value.clone() for name, value in _weights(module).items()}
            self._best = {"model": weights, "epoch": trainer.current_epoch + 1, "val_loss": loss}

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Not after an epoch's last batch: a resumed run would miss the validation that follows.
        if trainer.is_last_batch:
            if self._is_asked_to_stop and trainer.num_training_batches == 1:
                raise KeyboardInterrupt  # there will never be a better moment
            return
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

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not earlier: Lightning itself draws numbers between loading and the first batch.
        if self._random_state is not None:
            torch.set_rng_state(self._random_state)
            self._random_state = None

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

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self._best_loss, "random_state": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best_loss, self._random_state = state["best_loss"], state["random_state"]


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
