"""The training module: loss, metrics and optimizer of any language model of this package.

Shapes: B batch, T time (tokens), N sentences of a split.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from newllm.data.batching import Batch
from newllm.data.tokenizer import PAD, UNK
from newllm.models.language_model import LanguageModel
from newllm.training.clipping import GradientClip, clip_gradients

# The published validation loss is a mean over batches of this many sentences, in split order.
PUBLISHED_BATCH_SIZE = 16


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule: `scheduler(optimizer)`, advanced at every `interval`.

    One that advances by steps is called with `total_steps`, the steps that the run plans.
    """

    interval: str
    scheduler: Callable[..., Any]

    def build(self, optimizer: Optimizer, total_steps: int) -> Any:
        """The scheduler of an optimizer."""
        if self.interval == "epoch":
            return self.scheduler(optimizer)
        # A cycle rises and falls, which takes two steps.
        total_steps = max(total_steps, 2)
        return self.scheduler(optimizer, total_steps=total_steps, **self._no_division(total_steps))

    def _no_division(self, total_steps: int) -> dict[str, float]:
        """The share of a warm-up that ends at the very first step, a hair smaller.

        OneCycleLR divides by the steps of its warm-up less one. Where the warm-up is shorter than a
        step, it begins near its peak, and so it does here.
        """
        share = getattr(self.scheduler, "keywords", {}).get("pct_start")
        return {"pct_start": share * (1 - 1e-6)} if share and share * total_steps == 1 else {}

    def check(
        self, optimizer: Optimizer, total_steps: int, num_epochs: int, most: int = 200
    ) -> None:
        """Go through the first steps of a schedule: those of a short run are where it may break.

        Raises:
            ValueError: or what else the scheduler itself raises.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimizer takes no steps here
            scheduler = self.build(optimizer, total_steps)
            for number in range(min(total_steps if self.interval == "step" else num_epochs, most)):
                scheduler.step()
                for group in optimizer.param_groups:
                    if not (0 <= group["lr"] < math.inf):
                        rate = f"the learning rate is {group['lr']}"
                        raise ValueError(f"{rate} after {number + 1} of its {self.interval}s")

    def __post_init__(self) -> None:
        if self.interval not in ("step", "epoch"):
            raise ValueError(f"schedule.interval={self.interval}: must be step or epoch")


class SentenceScores:
    """Sums over the tokens of each sentence of a split, gathered batch by batch in any order."""

    COLUMNS = ("loss", "tokens", "loss_known", "tokens_known", "correct")

    def __init__(self) -> None:
        self._sentences: list[Tensor] = []
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def add(self, loss_BT: Tensor, correct_BT: Tensor, batch: Batch) -> None:
        """Add what `LanguageModel.score` says of a batch; padding counts nothing."""
        targets_BT = batch.targets_BT
        real_BT = targets_BT != PAD
        known_BT = real_BT & (targets_BT != UNK)
        columns = (loss_BT, real_BT, loss_BT * known_BT, known_BT, correct_BT & real_BT)
        self._sums.append(torch.stack([column.sum(1).double() for column in columns], dim=1))
        self._sentences.append(batch.sentence_B)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """What was gathered so far."""
        return {"sentences": list(self._sentences), "sums": list(self._sums)}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        self._sentences, self._sums = list(state["sentences"]), list(state["sums"])

    def metrics(self) -> dict[str, float]:
        """The metrics of a split, by their names without the split's prefix; none before `add`."""
        if not self._sums:
            return {}
        order_N = torch.cat(self._sentences).argsort()
        sums_N5 = torch.cat(self._sums)[order_N]
        loss, tokens, loss_known, tokens_known, correct = sums_N5.sum(0).tolist()
        group_means = [
            (group[:, 0].sum() / group[:, 1].sum()).item()
            for group in sums_N5.split(PUBLISHED_BATCH_SIZE)
        ]
        return {
            "loss": loss / tokens,
            "loss_batch_mean": sum(group_means) / len(group_means),
            "loss_known": loss_known / max(tokens_known, 1),
            "perplexity": perplexity(loss / tokens),
            "accuracy": correct / tokens,
        }


def perplexity(loss: float) -> float:
    """e to the loss in nats; infinite where that is too large for a number."""
    return math.exp(loss) if loss < 700 else math.inf


class LanguageModule(LightningModule):
    """Trains a language model to predict the next token.

    Logs under `val/` and `test/`; a mean is over real tokens unless its name says otherwise.
    `train_scores` gathers what the epoch's training batches scored before their steps,
    `evaluation_scores` what the split at hand scored, and `gradient_norm` holds the norm of the
    last step's gradient before clipping.

    Args:
        model: to be trained.
        optimizer: makes an optimizer of some parameters.
        schedule: of its learning rate; None keeps it.
        gradient_clip: the largest norm of the gradient, by epoch.
        num_steps: optimizer steps that the run plans.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: Callable[..., Optimizer],
        schedule: Schedule | None,
        gradient_clip: GradientClip,
        num_steps: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.make_optimizer = optimizer
        self.schedule = schedule
        self.gradient_clip = gradient_clip
        self.num_steps = num_steps
        self.gradient_norm = torch.tensor(math.nan)
        self.train_scores = SentenceScores()
        self.evaluation_scores = SentenceScores()
        self._num_tokens_of_step: list[Tensor] = []  # of each batch since the last step

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the real tokens of a batch, in nats."""
        loss_sum, num_tokens = self._score(batch, SentenceScores())
        return loss_sum / num_tokens

    def _score(self, batch: Batch, scores: SentenceScores) -> tuple[Tensor, Tensor]:
        """The sum of the losses of a batch, and of how many tokens."""
        loss_BT, correct_BT, _ = self.model.score(batch.tokens_BT, batch.targets_BT)
        scores.add(loss_BT, correct_BT, batch)
        return loss_BT.sum(), (batch.targets_BT != PAD).sum()

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """The mean loss of a batch; of accumulated ones, a loss that weights each by its tokens.

        All losses of an optimizer step are divided by the number of tokens of its first batch,
        since the others are not known yet; `configure_gradient_clipping` makes up for it.
        """
        loss_sum, num_tokens = self._score(batch, self.train_scores)
        self._num_tokens_of_step.append(num_tokens)
        loss = loss_sum / self._num_tokens_of_step[0]
        return {"loss": loss, "loss_sum": loss_sum.detach(), "num_tokens": num_tokens}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        num_tokens, self._num_tokens_of_step = self._num_tokens_of_step, []
        if (num_batches := self.trainer.accumulate_grad_batches) > 1:
            # Lightning divides the loss of each batch by their number.
            scale = num_batches * num_tokens[0] / torch.stack(num_tokens).sum()
            for weight in self.model.parameters():
                if weight.grad is not None:
                    weight.grad.mul_(scale)
        limit = self.gradient_clip(self.current_epoch)
        self.gradient_norm = clip_gradients(optimizer, limit)

    def on_validation_epoch_start(self) -> None:
        self.evaluation_scores = SentenceScores()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self._score(batch, self.evaluation_scores)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        metrics = self.evaluation_scores.metrics()
        self.log_dict({f"{split}/{name}": value for name, value in metrics.items()})

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.model.parameters())
        if self.schedule is None:
            return optimizer
        scheduler = self.schedule.build(optimizer, self.num_steps)
        return [optimizer], [{"scheduler": scheduler, "interval": self.schedule.interval}]
