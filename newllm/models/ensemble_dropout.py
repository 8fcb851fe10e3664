"""Dropout of several models that are computed together, with the masks that each would draw alone.

Shapes: S models, B rows of a model, T time (tokens), E input of a cell, N masks of a step, M their
width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from newllm.models.cell import Cell
from newllm.models.recurrence.reference import DropoutMasks

# Within it, random numbers come from the generators of one of the models.
OwnNumbers = Callable[[], AbstractContextManager[None]]


class Unstackable(ValueError):
    """The models cannot be computed together."""


@dataclass(frozen=True)
class EnsembleMasks(DropoutMasks):
    """The dropout masks of the cells of all models.

    Attributes:
        parts: masks of each model, and the number of tokens that it reads.
    """

    parts: tuple[tuple[DropoutMasks, int], ...] = ()

    def block(self, num_steps: int) -> Tensor:
        """As in `DropoutMasks`; what is padding there drops nothing."""
        num_masks, mask_dim, num_all_rows = self.step_shape
        num_rows = num_all_rows // len(self.parts)
        shape = num_masks, num_steps, num_all_rows, mask_dim
        masks_NTBM = torch.ones(shape, dtype=self.dtype, device=self.device)
        of_parts = masks_NTBM.split(num_rows, dim=2)
        for own_NTBM, (part, num_tokens) in zip(of_parts, self.parts, strict=True):
            if (own_steps := min(num_steps, num_tokens - self.first_step)) > 0:
                drawn_NTBM = replace(part, first_step=self.first_step).block(own_steps)
                own_NTBM[:, :own_steps, : drawn_NTBM.shape[2]] = drawn_NTBM
        return masks_NTBM


class OwnMasks:
    """Draws dropout masks as each of the models would alone.

    Args:
        sizes: rows and tokens that each model reads.
        own_numbers: of each model.
    """

    def __init__(self, sizes: Sequence[tuple[int, ...]], own_numbers: Sequence[OwnNumbers]) -> None:
        self._sizes, self._own_numbers = sizes, own_numbers
        self._num_rows, self._num_tokens = (max(size) for size in zip(*sizes, strict=True))

    def of_cell(self, cell: Cell, inputs: Tensor) -> DropoutMasks | None:
        """As `DropoutMasks.draw`, for inputs [S B, T, E]."""
        parts = []
        for (rows, tokens), own_numbers in zip(self._sizes, self._own_numbers, strict=True):
            with own_numbers():
                masks = DropoutMasks.draw(cell, inputs[:rows])
            if masks is None:
                return None
            parts.append((masks, tokens))
        first = parts[0][0]
        num_masks, mask_dim, _ = first.step_shape
        shape = num_masks, mask_dim, len(inputs)
        return EnsembleMasks(
            0, first.probability, shape, first.dtype, first.device, parts=tuple(parts)
        )

    def of(self, like: Tensor, probability: float, times: Mapping[int, int]) -> Tensor:
        """Scaled masks for [S B, ...].

        Args:
            like: what they are for.
            probability: of dropping an element.
            times: the dimensions that are as long as the longest row, and for each the number of
                tokens that come before it.

        Raises:
            Unstackable: these dimensions have another length.
        """
        lengths = {dim: like.shape[dim] if dim < like.dim() else 0 for dim in times}
        wanted = {dim: past + self._num_tokens for dim, past in times.items()}
        if lengths != wanted or len(like) != self._num_rows * len(self._sizes):
            raise Unstackable(f"dropout of a tensor {list(like.shape)}, not [batch, tokens, ...]")
        masks = torch.ones_like(like)
        parts = zip(masks.split(self._num_rows), self._sizes, self._own_numbers, strict=True)
        for own, (rows, tokens), own_numbers in parts:
            place = [slice(rows)] + [slice(None)] * (like.dim() - 1)
            for dim, past in times.items():
                place[dim] = slice(past + tokens)
            ones = torch.ones_like(own[tuple(place)])
            with own_numbers():
                own[tuple(place)] = F.dropout(ones, probability)
        return masks


class OwnDropout(TorchFunctionMode):
    """Within it, dropout draws the masks that each of the models would draw alone."""

    def __init__(self, masks: OwnMasks) -> None:
        super().__init__()
        self._masks = masks

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace the functions of torch that drop something."""
        if func is F.dropout:
            return self._drop(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _drop(
        self, inputs: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return inputs
        return inputs * self._masks.of(inputs, p, {1: 0})

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> Tensor:
        if dropout_p == 0:
            return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal)
        scores = query @ key.mT / query.shape[-1] ** 0.5
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=key.device).tril()
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        weights = scores.softmax(-1)
        past = key.shape[2] - query.shape[2]
        return (weights * self._masks.of(weights, dropout_p, {2: 0, 3: past})) @ value
