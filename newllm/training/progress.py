"""How far a run is."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from newllm.training.clock import is_due
from newllm.training.history import history_of
from newllm.training.module import LanguageModule
from newllm.training.throughput import Throughput


class ProgressLine(Callback):
    """A bar for the whole run; without a terminal, a line for every tenth of it."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[losses]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            refresh_per_second=4,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", epoch=1, losses="", speed="")
        self._started = time.monotonic()
        self._step_of_line = 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, LanguageModule)
        self._started = time.monotonic()
        self._step_of_line = trainer.global_step
        self._bar.update(self._task, total=module.num_steps)
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, LanguageModule)
        step, num_steps = trainer.global_step, module.num_steps
        if not self._bar.disable:
            self._bar.update(
                self._task, completed=step, epoch=_epoch(trainer), speed=_speed(trainer)
            )
        elif 10 * (step - self._step_of_line) >= num_steps and not trainer.is_last_batch:
            loss = history_of(trainer).last_loss  # of an earlier step: nothing waits for this one
            shown = "" if math.isnan(loss) else f"  train {loss:.3f}"
            self._print(trainer, f"step {step:,}/{num_steps:,}{shown}")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        losses = f"train {metrics['train/loss']:.3f}  val {metrics.get('val/loss', math.nan):.3f}"
        self._bar.update(self._task, losses=losses)
        if self._bar.disable and is_due(trainer, max(1, (trainer.max_epochs or 10) // 10)):
            self._print(trainer, losses)

    def _print(self, trainer: Trainer, losses: str) -> None:
        self._step_of_line = trainer.global_step
        seconds = time.monotonic() - self._started
        words = [f"epoch {_epoch(trainer)}", losses, f"{seconds:.0f} s", _speed(trainer)]
        self._console.print("  ".join(filter(None, words)), highlight=False)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._bar.stop()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        self._bar.stop()


def _speed(trainer: Trainer) -> str:
    callbacks: list[Callback] = getattr(trainer, "callbacks")  # noqa: B009  (untyped in Lightning)
    return next((each.line for each in callbacks if isinstance(each, Throughput)), "")


def _epoch(trainer: Trainer) -> str:
    return f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
