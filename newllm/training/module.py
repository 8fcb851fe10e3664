"""The training module: loss, metrics and optimizer of any language model of this package.

Shapes: B batch, T time (tokens).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from newllm.data.batch import Batch
from newllm.data.module import DataModule
from newllm.data.source import TEST, VALIDATION
from newllm.models.language_model import LanguageModel, State
from newllm.training.clipping import GradientClip, clip_gradients
from newllm.training.metrics import Scores, sum_rows


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


class LanguageModule(LightningModule):
    """Trains a language model to predict the scored targets.

    Logs the metrics of each evaluation split: `val/` and `test/`, or the name of another split,
    which is logged as `best/NAME/` when it is evaluated with the best weights. `scores` gathers
    what the splits at hand scored, by name; `gradient_norm` is that of the last step, before
    clipping.

    A source whose batches say where to reset has its state carried from batch to batch. The
    gradient ends at the beginning of a batch.

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
        self.scores: dict[str, Scores] = {}
        self._num_tokens_of_step: list[Tensor] = []  # of each batch since the last step
        self._state: State | None = None  # carried by training batches
        self._evaluation_state: tuple[int, State | None] = (0, None)  # of a split, by its number

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the scored targets of a batch, in nats."""
        loss_BT, _, _ = self._score(batch, None)
        return loss_BT.sum() / batch.scored_BT.sum()

    def _score(self, batch: Batch, state: State | None) -> tuple[Tensor, Tensor, State | None]:
        """Loss and whether the prediction is correct [B, T], and the state to carry on."""
        if batch.reset_BT is None:
            return *self.model.score(batch.tokens_BT, batch.targets_BT)[:2], None
        loss_BT, correct_BT, state = self.model.score(
            batch.tokens_BT, batch.targets_BT, state, batch.reset_BT
        )
        return loss_BT, correct_BT, _detached(state)

    def on_train_start(self) -> None:
        self._state = _detached(self._state, self.device)  # one of a checkpoint lies elsewhere

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """The mean loss of a batch, and the `RowSums` that metrics are made from.

        The losses of accumulated batches are weighted by their tokens. All of them are divided by
        the number of tokens of the first one, since the others are not known yet;
        `configure_gradient_clipping` makes up for it.
        """
        loss_BT, correct_BT, self._state = self._score(batch, self._state)
        self._num_tokens_of_step.append(batch.scored_BT.sum().clamp(min=1))
        loss = loss_BT.sum() / self._num_tokens_of_step[0]
        return {"loss": loss, "rows": sum_rows(loss_BT.detach(), correct_BT, batch)}

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
        self._start_scores(self._data.validation_names)

    def on_test_epoch_start(self) -> None:
        self._start_scores(self._data.test_names)

    @property
    def _data(self) -> DataModule:
        data = getattr(self.trainer, "datamodule")  # noqa: B009  (untyped in Lightning)
        assert isinstance(data, DataModule)
        return data

    def _start_scores(self, names: Sequence[str]) -> None:
        splits = self._data.source.evaluation
        self.scores = {name: Scores(splits[name].metrics, splits[name].slices) for name in names}
        self._evaluation_state = 0, None

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        split, state = self._evaluation_state
        loss_BT, correct_BT, state = self._score(batch, state if split == dataloader_idx else None)
        self._evaluation_state = dataloader_idx, state
        list(self.scores.values())[dataloader_idx].add(sum_rows(loss_BT, correct_BT, batch))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.evaluated({VALIDATION: "val"}))

    def on_test_epoch_end(self) -> None:
        others = {name: f"best/{name}" for name in self.scores}
        self.log_dict(self.evaluated(others | {TEST: TEST}))

    def evaluated(self, prefixes: dict[str, str]) -> dict[str, float]:
        """The metrics of the splits at hand; a split without a prefix has its name for one."""
        return {
            f"{prefixes.get(name, name)}/{metric}": value
            for name, scores in self.scores.items()
            for metric, value in scores.metrics().items()
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["carried_state"] = self._state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._state = checkpoint["carried_state"]

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.model.parameters())
        if self.schedule is None:
            return optimizer
        scheduler = self.schedule.build(optimizer, self.num_steps)
        return [optimizer], [{"scheduler": scheduler, "interval": self.schedule.interval}]


def _detached(state: State | None, device: torch.device | None = None) -> State | None:
    """A state that no gradient passes, on a device if one is given."""
    if isinstance(state, tuple):
        return tuple(tensor.detach().to(device) for tensor in state)
    return None if state is None else state.detach().to(device)
