"""The batch that sources make and models read.

Shape suffixes: B batch (rows), T time (tokens).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

IGNORE = -100
"""A target that is not scored: the default `ignore_index` of torch's losses."""


class Batch(NamedTuple):
    """Rows of tokens and their targets.

    Attributes:
        tokens_BT: token ids, padded on the right with `<PAD>`. int64.
        targets_BT: the id to predict after each token, `IGNORE` if nothing is scored. int64.
        row_B: the index of each row within its split. int64.
        slice_B: the slice of each row, an index into `Split.slices`. None for a split without
            slices. int64.
        reset_BT: true if a row forgets everything before it reads that token. None means nowhere.
            bool.
        continues_B: the row of the batch before from whose last state each row starts. None starts
            every row from the initial state. int64.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    row_B: Tensor
    slice_B: Tensor | None = None
    reset_BT: Tensor | None = None
    continues_B: Tensor | None = None

    @property
    def scored_BT(self) -> Tensor:
        """Whether each target is scored. bool."""
        return self.targets_BT != IGNORE

    def share(self, rank: int, size: int) -> Batch:
        """Every `size`-th row from row `rank` on; without any, a row that is not scored."""
        if size == 1:
            return self
        mine = slice(rank, None, size) if rank < len(self.tokens_BT) else slice(0, 1)
        given = {name: field for name, field in self._asdict().items() if field is not None}
        batch = self._replace(**{name: field[mine] for name, field in given.items()})
        if rank < len(self.tokens_BT):
            return batch
        return batch._replace(targets_BT=torch.full_like(batch.targets_BT, IGNORE))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        given = {name: field for name, field in self._asdict().items() if field is not None}
        return self._replace(**{name: _moved(field, device) for name, field in given.items()})


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device. A copy to a GPU only waits for nothing if it is from pinned memory."""
    if tensor.is_cpu and torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's weights."""
    return next(model.parameters()).device


def on_device_of(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches on the device of a model's weights."""
    device = device_of(model)
    return (batch.to(device) for batch in batches)
