"""Rows without padding between their tokens, for layers that look back by a number of tokens.

Shapes: B batch, T time (tokens), D any further dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from newllm.models.layer import padding_only_trails, real_tokens


@dataclass(frozen=True)
class Packing:
    """A chunk whose real tokens stand first in each row.

    Attributes:
        order_BT: index in the chunk of each packed token; None if the chunk is packed as it is.
        is_real_BT: bool, true at the packed tokens that are no padding.
        segment_BT: resets of the row up to each packed token; 0 before the first reset, and
            `last_segment_B` at the padding behind the tokens.
        num_real_B: real tokens of each row.
        last_segment_B: resets of each row in the whole chunk.
    """

    order_BT: Tensor | None
    is_real_BT: Tensor
    segment_BT: Tensor
    num_real_B: Tensor
    last_segment_B: Tensor

    @classmethod
    def of(cls, x_BTD: Tensor, pad_BT: Tensor | None, reset_BT: Tensor | None) -> "Packing":
        """How to pack a chunk, from the flags of `Layer.forward`."""
        real_BT = real_tokens(x_BTD, pad_BT)
        segment_BT = torch.zeros_like(real_BT, dtype=torch.long)
        if reset_BT is not None:
            segment_BT = reset_BT.cumsum(1)
        last_segment_B, order_BT = segment_BT[:, -1], None
        if pad_BT is not None and not padding_only_trails(real_BT):
            order_BT = first_true(real_BT, real_BT.shape[1])
            segment_BT = segment_BT.gather(1, order_BT)
        time_T = torch.arange(real_BT.shape[1], device=x_BTD.device)
        num_real_B = real_BT.sum(1)
        is_real_BT = time_T < num_real_B[:, None]
        segment_BT = torch.where(is_real_BT, segment_BT, last_segment_B[:, None])
        return cls(order_BT, is_real_BT, segment_BT, num_real_B, last_segment_B)

    def pack(self, x_BTD: Tensor) -> Tensor:
        """A chunk in packed order."""
        return x_BTD if self.order_BT is None else take(x_BTD, self.order_BT)

    def unpack(self, x_BTD: Tensor) -> Tensor:
        """The inverse of `pack`."""
        return x_BTD if self.order_BT is None else take(x_BTD, self.order_BT.argsort(dim=1))

    def position_BT(self, start_B: Tensor) -> Tensor:
        """Real tokens before each packed token since the last reset.

        Args:
            start_B: position of the first token of the chunk, if there is no reset before it.
        """
        time_BT = torch.arange(self.segment_BT.shape[1], device=start_B.device).expand_as(
            self.segment_BT
        )
        is_first_BT = self.segment_BT.diff(dim=1, prepend=torch.zeros_like(start_B)[:, None]) != 0
        origin_BT = torch.where(is_first_BT, time_BT, -start_B[:, None])
        if origin_BT.shape[1] > 1:  # a single token is its own maximum; ONNX has no running one
            origin_BT = origin_BT.cummax(1).values
        return time_BT - origin_BT

    def origin_B(self, start_B: Tensor) -> Tensor:
        """The packed index at which position 0 of the last segment stands, or would stand."""
        before_B = (self.is_real_BT & (self.segment_BT < self.last_segment_B[:, None])).sum(1)
        return torch.where(self.last_segment_B > 0, before_B, -start_B)


def take(x_BTD: Tensor, index_BS: Tensor) -> Tensor:
    """The tokens [B, S, D] of each row at the given indices."""
    index = index_BS.view(*index_BS.shape, *[1] * (x_BTD.dim() - 2))
    return x_BTD.gather(1, index.expand(-1, -1, *x_BTD.shape[2:]))


def first_true(flags_BS: Tensor, num_taken: int) -> Tensor:
    """Indices [B, num_taken] of the true elements of each row in order, then of others."""
    return (~flags_BS).long().argsort(dim=1, stable=True)[:, :num_taken]
