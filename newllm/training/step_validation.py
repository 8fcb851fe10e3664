"""The validation loss by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from newllm.data.batch import Batch, on_device_of
from newllm.data.batching import EvaluationBatches
from newllm.data.source import Source
from newllm.data.sources.sentences import SentenceSource
from newllm.data.tokenizer import EOS, UNK
from newllm.training.clock import data_of, steps_that_pay
from newllm.training.history import write_table
from newllm.training.module import LanguageModule


class StepValidation(Callback):
    """`validation_steps.csv`: the validation loss by step, where epochs would hide what happens.

    `unk`, `eos` and `other` are what the targets of that kind contribute; they add up to the loss.
    A small validation split is scored after every step. Of a larger one the first sentences are,
    always the same ones, after every few of the first steps, and less often in a short run, so
    that all of it takes at most a tenth of the training's time. Early stopping and the choice of
    the best weights do not read it. Sources other than sentences are not scored by step.

    Args:
        small: targets of a split that is scored after every step.
        most: targets of a larger one that are scored, rounded up to whole sentences.
        every_n_steps: how often, at most.
        num_steps: how long.
    """

    KINDS = ("unk", "eos", "other")
    MAX_LOGITS = 1 << 19  # of a batch: beside a training step, no memory that one would notice

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

    def prepare(self, source: Source, num_steps: int) -> StepValidation:
        """Choose what is scored, and how often in a run of so many steps."""
        if not isinstance(source, SentenceSource):
            return self
        split = source.split("validation")
        if split.num_targets <= self.small:
            self._batches = list(EvaluationBatches(split))
            return self
        num_sentences = int((split.num_positions_N.cumsum(0) < self.most).sum()) + 1
        small = max(1, self.MAX_LOGITS // split.num_ids)
        self._batches = list(
            EvaluationBatches(split, max_positions=small, num_sentences=num_sentences)
        )
        num_targets = int(split.num_positions_N[:num_sentences].sum())
        of_a_step = source.split("train").num_targets / len(source.train)
        self._interval = self.interval(num_targets, of_a_step, num_steps)
        self._last_step = self.num_steps
        return self

    def num_batches(self, num_steps: int) -> int:
        """Batches that are scored in a run of so many steps."""
        return len(self._batches) * (int(min(num_steps, self._last_step)) // self._interval + 1)

    def interval(self, num_targets: int, num_trained: float, num_steps: int) -> int:
        """Steps from one scoring to the next, so that all of them take their share of the time.

        Args:
            num_targets: that are scored each time.
            num_trained: targets of a training step.
            num_steps: of the whole run.
        """
        affordable = num_steps / steps_that_pay(num_targets, num_trained)
        num_watched = min(self.num_steps, num_steps)
        return max(self.every_n_steps, math.ceil(num_watched / max(affordable, 1)))

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Before the next step rather than after the last one, so that a run which goes on from a
        # checkpoint neither misses one nor has one twice.
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
        is_first = not self.rows or self.rows[-1]["step"] < step  # of batches with this step
        is_due = is_first and step <= self._last_step and step % self._interval == 0
        if not self._batches or not is_due:
            return
        assert isinstance(module, LanguageModule)
        model = module.model
        model.eval()
        sums = dict.fromkeys(self.KINDS, 0.0)
        num_targets = 0
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for batch in on_device_of(model, self._batches):
                loss_BT, _, _ = model.score(batch.tokens_BT, batch.targets_BT)
                is_unk_BT, is_eos_BT = batch.targets_BT == UNK, batch.targets_BT == EOS
                masks = (is_unk_BT, is_eos_BT, ~(is_unk_BT | is_eos_BT))
                for kind, mask_BT in zip(self.KINDS, masks, strict=True):
                    sums[kind] += float((loss_BT * mask_BT).sum())
                num_targets += int(batch.scored_BT.sum())
        model.train()
        shares = {kind: total / num_targets for kind, total in sums.items()}
        loss = sum(shares.values())
        self.rows.append({"step": step, "val/loss": loss, **shares})
        for logger in trainer.loggers:
            logger.log_metrics({"val/loss_by_step": loss}, step=step)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])
