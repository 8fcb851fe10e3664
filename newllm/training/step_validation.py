"""The validation loss by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from newllm.data.batch import Batch, on_device_of
from newllm.data.batching import EvaluationBatches
from newllm.data.source import VALIDATION, Source
from newllm.data.streaming import EVALUATION_WINDOW
from newllm.data.tokenizer import EOS, UNK
from newllm.training.clock import steps_that_pay
from newllm.training.module import LanguageModule, data_of
from newllm.training.steps import write_table

MAX_LOGITS = 1 << 19  # of a batch; small beside the memory of a training step


class StepValidation(Callback):
    """`validation_steps.csv`: the validation loss by step, which shows what epochs would hide.

    `unk`, `eos` and `other` are the contributions of targets of that kind; they add up to the loss.
    A small validation split is scored after every step. Of a larger one, a fixed set of its first
    sentences is scored during the first steps, at intervals that keep the cost at no more than a
    tenth of the training. Early stopping and the best weights do not depend on it. Only
    sources with encoded sequences are scored by step.

    Args:
        small: largest number of targets of a split that is scored after every step.
        most: targets that are scored of a larger split, rounded up to whole sentences.
        every_n_steps: shortest interval for a larger split.
        num_steps: how many of the first steps are covered for a larger split.
    """

    def __init__(
        self, small: int = 500, most: int = 2000, every_n_steps: int = 5, num_steps: int = 200
    ) -> None:
        self.small, self.most = small, most
        self.every_n_steps, self.num_steps = every_n_steps, num_steps
        self.rows: list[dict[str, float]] = []
        self._batches: list[Batch] = []
        self._interval, self._last_step = 1, math.inf

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, LanguageModule)
        self.prepare(data_of(trainer).source, module.num_steps)

    def prepare(self, source: Source, num_steps: int) -> None:
        """Choose what is scored, and how often in a run of so many steps."""
        split, train = source.encoded(VALIDATION), source.encoded("train")
        if split is None or train is None:
            return
        split = split.cut(EVALUATION_WINDOW)
        if split.num_targets <= self.small:
            self._batches = list(EvaluationBatches(split))
            return
        num_sentences = int((split.num_positions_N.cumsum(0) < self.most).sum()) + 1
        max_positions = max(1, MAX_LOGITS // split.num_ids)
        self._batches = list(
            EvaluationBatches(split, max_positions=max_positions, num_sentences=num_sentences)
        )
        num_targets = int(split.num_positions_N[:num_sentences].sum())
        num_trained = train.num_targets / len(source.train)
        self._interval = self.interval(num_targets, num_trained, num_steps)
        self._last_step = self.num_steps

    def num_batches(self, num_steps: int) -> int:
        """Batches that are scored in a run of so many steps."""
        return len(self._batches) * (int(min(num_steps, self._last_step)) // self._interval + 1)

    def interval(self, num_targets: int, num_trained: float, num_steps: int) -> int:
        """Steps between two scorings.

        Args:
            num_targets: that are scored each time.
            num_trained: targets of a training step.
            num_steps: of the whole run.
        """
        affordable = max(1, num_steps / steps_that_pay(num_targets, num_trained))
        return max(self.every_n_steps, math.ceil(min(self.num_steps, num_steps) / affordable))

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Before a step rather than after the last one: a run that resumes from a checkpoint neither
        # misses a row nor has one twice.
        self._score(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._score(trainer, module)
        self._write(trainer)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if self.rows:
            write_table(Path(trainer.default_root_dir) / "validation_steps.csv", self.rows)

    def _score(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        if not self._batches or step > self._last_step or step % self._interval:
            return
        if self.rows and self.rows[-1]["step"] == step:
            return  # accumulated batches share a step
        assert isinstance(module, LanguageModule)
        model = module.model
        model.eval()
        parts = []
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for batch in on_device_of(model, self._batches):
                loss_BT, _, _ = module.scorer.score(
                    batch.tokens_BT, batch.targets_BT, padding_matters=False
                )
                is_unk_BT, is_eos_BT = batch.targets_BT == UNK, batch.targets_BT == EOS
                kinds = (is_unk_BT, is_eos_BT, ~(is_unk_BT | is_eos_BT))
                sums = [(loss_BT * is_kind_BT).sum() for is_kind_BT in kinds]
                parts.append(torch.stack([*sums, batch.scored_BT.sum()]).double())
        model.train()
        *totals, num_targets = torch.stack(parts).sum(0).tolist()  # waits for a device, once
        shares = {
            kind: total / num_targets
            for kind, total in zip(("unk", "eos", "other"), totals, strict=True)
        }
        loss = sum(shares.values())
        self.rows.append({"step": step, "val/loss": loss, **shares})
        for logger in trainer.loggers:
            logger.log_metrics({"val/loss_by_step": loss}, step=step)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])
