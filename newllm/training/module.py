"""The Lightning module: loss, metrics, optimizer and schedule of a language model.

Shape suffixes: B batch, T time (tokens).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from newllm.data.batch import Batch
from newllm.data.module import DataModule
from newllm.data.source import TEST, VALIDATION
from newllm.models.language_model import LanguageModel, State
from newllm.statistics.scoring import Scorer, score_batch
from newllm.training.clipping import GradientClip, clip_gradients, weights_of
from newllm.training.metrics import Scores, sum_rows

MAX_CHECKED_STEPS = 200  # of a schedule


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule.

    Args:
        interval: `step` or `epoch`, after each of which the scheduler is advanced.
        scheduler: makes a scheduler of an optimizer; by steps, it is also given `total_steps`.
    """

    interval: str
    scheduler: Callable[..., Any]

    def __post_init__(self) -> None:
        if self.interval not in ("step", "epoch"):
            raise ValueError(f"schedule.interval={self.interval}: must be step or epoch")

    def build(self, optimizer: Optimizer, total_steps: int) -> Any:
        """The scheduler of an optimizer, for a run of so many steps."""
        chosen = getattr(self.scheduler, "keywords", {})
        arguments: dict[str, Any] = _rates_of_groups(optimizer, chosen)
        if self.interval == "epoch":
            return self.scheduler(optimizer, **arguments)
        arguments["total_steps"] = max(total_steps, 2)  # a cycle needs two
        share = chosen.get("pct_start")
        if share and share * arguments["total_steps"] == 1:
            # OneCycleLR divides by the steps of its warm-up less one. A slightly shorter warm-up
            # begins near the peak, as it does with even fewer steps.
            arguments["pct_start"] = share * (1 - 1e-6)
        return self.scheduler(optimizer, **arguments)

    def check(self, optimizer: Optimizer, total_steps: int, num_epochs: int) -> None:
        """Take the first steps of the schedule, which shows most of its faults.

        Raises:
            ValueError: a learning rate is negative or not finite. The scheduler may raise others.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimizer takes no steps here
            scheduler = self.build(optimizer, total_steps)
            num_steps = total_steps if self.interval == "step" else num_epochs
            for step in range(1, 1 + min(num_steps, MAX_CHECKED_STEPS)):
                scheduler.step()
                for group in optimizer.param_groups:
                    if not 0 <= group["lr"] < math.inf:
                        message = f"the learning rate is {group['lr']} after {step} of its"
                        raise ValueError(f"{message} {self.interval}s")


def _rates_of_groups(optimizer: Optimizer, chosen: Mapping[str, Any]) -> dict[str, list[float]]:
    """The rates of a schedule for each group of an optimizer, whose rates may differ.

    Raises:
        ValueError: a rate can only be given for all groups together.
    """
    groups = optimizer.param_groups
    if len(groups) == 1:
        return {}
    for name in ("eta_min", "min_lr"):
        if chosen.get(name):
            raise ValueError(f"{name} must be 0, since rates differ by width (recipe.base_fan_in)")
    return {
        name: [chosen[name] * group["lr"] / optimizer.defaults["lr"] for group in groups]
        for name in ("max_lr", "base_lr")
        if name in chosen
    }


class LanguageModule(LightningModule):
    """Trains a language model to predict the scored targets.

    Logs the metrics of each evaluation split, as `val/...`, `test/...` or `NAME/...`. Another split
    is logged as `best/NAME/...` when it is evaluated with the best weights.

    If the batches of a source contain `continues_B`, the state is carried from batch to batch,
    without its gradient.

    Args:
        model: to be trained.
        optimizer: makes the optimizer of a model.
        schedule: of the learning rate; None keeps it constant.
        gradient_clip: the largest norm of the gradient, by epoch.
        num_steps: optimizer steps planned.

    Attributes:
        scores: of the splits being evaluated, by name.
        gradient_norm: of the last step, before clipping.
        together: scores batches in the place of the model; None without other runs in the process.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: Callable[[nn.Module], Optimizer],
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
        self.together: Scorer | None = None
        self._num_tokens_of_step: list[Tensor] = []  # of each batch since the last step
        self._state: State | None = None  # carried between training batches
        # The number of an evaluation split, and the state carried between its batches.
        self._evaluation_state: tuple[int, State | None] = (0, None)

    @property
    def scorer(self) -> Scorer:
        """What scores batches while the run lasts."""
        return self.together or self.model

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the scored targets of a batch, in nats."""
        loss_BT = score_batch(self.model, batch, None).loss_BT
        return loss_BT.sum() / batch.scored_BT.sum()

    def _score(self, batch: Batch, state: State | None) -> tuple[Tensor, Tensor, State | None]:
        """Losses and correctness [B, T], and the state to carry on."""
        scored = score_batch(self.scorer, batch, state)
        carried = None if batch.continues_B is None else _detached(scored.state)
        return scored.loss_BT, scored.correct_BT, carried

    def on_train_start(self) -> None:
        self._state = _detached(self._state, self.device)  # that of a checkpoint may be on another
        if self._averages_itself:
            wrapped = self.trainer.strategy.model
            assert isinstance(wrapped, DistributedDataParallel)
            wrapped.require_backward_grad_sync = False

    @property
    def _averages_itself(self) -> bool:
        """Whether gradients are averaged over processes here.

        DDP averages a gradient once it is complete. It takes it for complete after the first block
        of steps that is recomputed.
        """
        if num_processes() == 1 or not self.model.recompute:
            return False
        return isinstance(self.trainer.strategy.model, DistributedDataParallel)

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Any]:
        """The loss of a batch, its `RowSums`, and the sums of losses and tokens in all processes.

        Accumulated batches are weighted by their tokens: the losses of all are divided by the
        number of tokens of the first one, and `configure_gradient_clipping` corrects the gradients
        once the total is known.
        """
        loss_BT, correct_BT, self._state = self._score(batch, self._state)
        rows = sum_rows(loss_BT.detach(), correct_BT, batch)
        totals = rows.sums_BK[:, :2].sum(0)  # loss, tokens
        if (number := num_processes()) > 1:
            torch.distributed.all_reduce(totals)
        self._num_tokens_of_step.append(totals[1].clamp(min=1).float())
        # The strategy averages the gradients of the processes.
        loss = loss_BT.sum() * number / self._num_tokens_of_step[0]
        return {"loss": loss, "rows": rows, "totals": totals}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self._averages_itself:
            _average([weight.grad for weight in self.model.parameters() if weight.grad is not None])
        num_tokens, self._num_tokens_of_step = self._num_tokens_of_step, []
        if (num_batches := self.trainer.accumulate_grad_batches) > 1:
            # Lightning has divided the loss of each batch by their number.
            scale = num_batches * num_tokens[0] / torch.stack(num_tokens).sum()
            for weight in weights_of(optimizer):
                if weight.grad is not None:
                    weight.grad.mul_(scale)
        self.gradient_norm = clip_gradients(optimizer, self.gradient_clip(self.current_epoch))

    def on_validation_epoch_start(self) -> None:
        self._start_scores()

    def on_test_epoch_start(self) -> None:
        self._start_scores()

    def _start_scores(self) -> None:
        data = data_of(self.trainer)
        names = data.test_names if self.trainer.testing else data.validation_names
        splits, tokenizer = data.source.evaluation, data.source.tokenizer
        self.scores = {name: Scores.of(splits[name], tokenizer) for name in names}
        self._evaluation_state = 0, None

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        split, state = self._evaluation_state
        loss_BT, correct_BT, state = self._score(batch, state if split == dataloader_idx else None)
        self._evaluation_state = dataloader_idx, state
        scores = list(self.scores.values())[dataloader_idx]
        scores.add(sum_rows(loss_BT, correct_BT, batch, scores.bytes_V))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.evaluated({VALIDATION: "val"}))

    def on_test_epoch_end(self) -> None:
        others = {name: f"best/{name}" for name in self.scores}
        self.log_dict(self.evaluated(others | {TEST: TEST}))

    def evaluated(self, prefixes: dict[str, str]) -> dict[str, float]:
        """The metrics of the evaluated splits; the default prefix of a split is its name."""
        return {
            f"{prefixes.get(name, name)}/{metric}": value
            for name, scores in self.scores.items()
            for metric, value in scores.metrics().items()
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["carried_state"] = self._state
        # Callbacks have put weights in, too.
        checkpoint |= {
            key: tree_map_only(Tensor, _unshared, part) for key, part in checkpoint.items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._state = checkpoint["carried_state"]

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.model)
        if self.schedule is None:
            return optimizer
        scheduler = self.schedule.build(optimizer, self.num_steps)
        return [optimizer], [{"scheduler": scheduler, "interval": self.schedule.interval}]


def num_processes() -> int:
    """The processes of this run."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _average(gradients: list[Tensor]) -> None:
    """Average gradients over all processes, in place."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= num_processes()
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, averaged in zip(gradients, flat.split(sizes), strict=True):
        gradient.copy_(averaged.view_as(gradient))


def _detached(state: State | None, device: torch.device | None = None) -> State | None:
    """Detach a state, and move it if a device is given."""
    if isinstance(state, tuple):
        return tuple(tensor.detach().to(device) for tensor in state)
    return None if state is None else state.detach().to(device)


def _unshared(tensor: Tensor) -> Tensor:
    """A tensor without those that share its memory, which a checkpoint would contain as well."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def data_of(trainer: Trainer) -> DataModule:
    """The data of a run."""
    data = getattr(trainer, "datamodule")  # noqa: B009  (untyped in Lightning)
    assert isinstance(data, DataModule)
    return data
