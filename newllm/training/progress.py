"""How far a run is."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from newllm.training.clock import history_of, is_due
from newllm.training.module import LanguageModule


class ProgressLine(Callback):
    """A bar for the whole run; where the output is no terminal, a line every tenth of the way."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._started = time.monotonic()
        self._num_steps, self._step_of_line = 1, 0

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, LanguageModule)
        self._started = time.monotonic()
        self._num_steps = module.num_steps
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %"),
                TextColumn("{task.fields[losses]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
                refresh_per_second=4,
            )
            self._task = self._progress.add_task("", total=self._num_steps, epoch=1, losses="")
            self._progress.start()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step_of_line = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self._progress:
            self._progress.update(self._task, completed=step, epoch=_epoch(trainer))
        elif 10 * (step - self._step_of_line) >= self._num_steps and not trainer.is_last_batch:
            loss = history_of(trainer).last_loss  # not of this very step, which would be waited for
            shown = "" if math.isnan(loss) else f"  train {loss:.3f}"
            self._print(trainer, f"step {step:,}/{self._num_steps:,}{shown}")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        losses = f"train {metrics['train/loss']:.3f}  val {metrics.get('val/loss', math.nan):.3f}"
        if self._progress:
            self._progress.update(self._task, losses=losses)
        elif is_due(trainer, max(1, (trainer.max_epochs or 10) // 10)):
            self._print(trainer, losses)

    def _print(self, trainer: Trainer, losses: str) -> None:
        self._step_of_line = trainer.global_step
        seconds = time.monotonic() - self._started
        line = f"epoch {_epoch(trainer)}  {losses}  {seconds:.0f} s"
        self._console.print(line, highlight=False)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None


def _epoch(trainer: Trainer) -> str:
    return f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
