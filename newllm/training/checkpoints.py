"""Checkpoints of a run, also when a signal ends it."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from newllm.runs.writing import written_whole
from newllm.training.history import history_of
from newllm.training.module import LanguageModule
from newllm.training.random_states import random_states, set_random_states
from newllm.training.sharding import any_process, whole_state_dict
from newllm.training.turns import Stopped, current_member

INTERVAL = 60.0  # seconds


class Checkpoints(Callback):
    """Writes `best.ckpt`, the weights of the best validation, and `last.ckpt`, to resume from.

    Both are written every minute or every `every_n_steps`, and the best one at the end: writing
    them in every epoch would take a small model longer than training it. After SIGINT or SIGTERM,
    the current step is finished, both are written and the run ends; a second signal does not wait.

    They are written just before a training batch, when everything that belongs to the batch before
    it is done: its step, a validation, and the end of its epoch.

    Args:
        folder: for the checkpoints.
        keep_last: whether `last.ckpt` is also written at the end.
        every_n_steps: interval that replaces the one of a minute.
    """

    def __init__(self, folder: Path, keep_last: bool, every_n_steps: int | None = None) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.every_n_steps = every_n_steps
        self._best: dict[str, Any] | None = None
        self._random_states: dict[str, Any] | None = None  # of a checkpoint, to be restored
        self._written_at = time.monotonic()
        self._is_asked_to_stop = False
        self._handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                number: signal.signal(number, self._ask)
                for number in (signal.SIGINT, signal.SIGTERM)
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
        # Not in `on_validation_end`, see `History`, which is called first.
        assert isinstance(module, LanguageModule)
        history = history_of(trainer)
        if history.is_best:
            state = whole_state_dict(module.model)
            weights = {name: value.clone() for name, value in state.items()}
            self._best = {"model": weights, **history.best}

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._random_states is not None:
            # Not earlier, because Lightning draws random numbers before the first batch.
            set_random_states(self._random_states)
            self._random_states = None
            # Lightning would count one step too many for its logs.
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        if batch_idx % trainer.accumulate_grad_batches:
            return  # a checkpoint holds no gradients
        member = current_member()
        must_stop = self._is_asked_to_stop or bool(member and member.turns.is_asked_to_stop)
        if any_process(trainer, module, self._is_due(trainer.global_step) or must_stop):
            self._write_best()
            self._write_last(trainer)
            self._written_at = time.monotonic()
        if must_stop:
            raise KeyboardInterrupt if member is None else Stopped

    def _is_due(self, step: int) -> bool:
        if self.every_n_steps is None:
            return time.monotonic() - self._written_at > INTERVAL
        return step > 0 and step % self.every_n_steps == 0

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
        if self._best is not None:
            self.folder.mkdir(exist_ok=True)
            with written_whole(self.folder / "best.ckpt") as partial:
                torch.save(self._best, partial)
            self._best = None

    def _write_last(self, trainer: Trainer) -> None:
        # `trainer.save_checkpoint` would wait for processes that do not know of it.
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if not trainer.is_global_zero:
            return  # it has given its part
        self.folder.mkdir(exist_ok=True)
        with written_whole(self.folder / "last.ckpt") as partial:
            trainer.strategy.save_checkpoint(checkpoint, partial)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        # Lightning would skip the last batch of an epoch, which has been fetched already, and would
        # count the batch that is about to be trained on twice.
        progress["is_last_batch"] = False
        progress["total"]["ready"] = progress["total"]["completed"]

    def state_dict(self) -> dict[str, Any]:
        return {"random_states": random_states()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._random_states = state["random_states"]
