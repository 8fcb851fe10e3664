"""The losses of a model on batches, whose rows may continue those of the batch before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from newllm.data.batch import Batch, on_device_of
from newllm.models.language_model import LanguageModel, State


class Scored(NamedTuple):
    """A batch, and as `LanguageModel.score` returns them its losses, its hits and its state."""

    batch: Batch
    loss_BT: Tensor
    correct_BT: Tensor
    state: State


class Scorer(Protocol):
    """A model, or what computes it together with others."""

    def score(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
        padding_matters: bool = True,
    ) -> tuple[Tensor, Tensor, State]:
        """As `LanguageModel.score`."""


def score_batch(model: Scorer, batch: Batch, before: State | None) -> Scored:
    """Score a batch; `before` is the state after the batch before it, None for the first one."""
    state = None
    if before is not None and batch.continues_B is not None:
        state = tuple(part[batch.continues_B] for part in before)
    is_carried = batch.continues_B is not None
    scores = model.score(
        batch.tokens_BT, batch.targets_BT, state, batch.reset_BT, padding_matters=is_carried
    )
    return Scored(batch, *scores)


@torch.no_grad()
def score_batches(model: LanguageModel, batches: Iterable[Batch]) -> Iterator[Scored]:
    """Score the batches of a split in their order, on the device of the model."""
    state: State | None = None
    for batch in on_device_of(model, batches):
        scored = score_batch(model, batch, state)
        state = scored.state
        yield scored
