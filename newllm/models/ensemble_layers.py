"""Modules that hold the weights of several models, in the place of those of one.

Shapes: S models, B rows of a model, R all rows of a model that a module reads, I and O features of
a Linear, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.models.ensemble_dropout import Unstackable


class EnsembleLinear(nn.Module):
    """The Linears of all models."""

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight, self.bias = _stacked(parts, "weight"), _stacked(parts, "bias")

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [S B, ..., I] to [S B, ..., O]."""
        assert self.weight is not None
        rows_SRI = _by_model(inputs, len(self.weight))
        weight_SIO = self.weight.transpose(1, 2)
        if self.bias is None:
            outputs = torch.bmm(rows_SRI, weight_SIO)
        else:
            outputs = torch.baddbmm(self.bias[:, None], rows_SRI, weight_SIO)
        return outputs.view(*inputs.shape[:-1], -1)


class EnsembleEmbedding(nn.Module):
    """The tables of all models."""

    def __init__(self, parts: Sequence[nn.Embedding]) -> None:
        super().__init__()
        self.weight = _stacked(parts, "weight")

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids [S B, ...]."""
        assert self.weight is not None
        num_models, num_ids, _ = self.weight.shape
        first_S1 = num_ids * torch.arange(num_models, device=ids.device)[:, None]
        places = (_by_model(ids[..., None], num_models)[..., 0] + first_S1).view(ids.shape)
        return F.embedding(places, self.weight.flatten(0, 1))


class EnsembleNorm(nn.Module):
    """The LayerNorms or RMSNorms of all models, over the last dimension."""

    def __init__(self, parts: Sequence[nn.LayerNorm] | Sequence[nn.RMSNorm]) -> None:
        super().__init__()
        self.weight = _stacked(parts, "weight")
        self.bias = _stacked(parts, "bias") if isinstance(parts[0], nn.LayerNorm) else None
        kind: type[nn.Module] = type(parts[0])
        shape, eps = parts[0].normalized_shape, parts[0].eps
        self.normalize = kind(shape, eps, elementwise_affine=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalize [S B, ..., D]."""
        normed: Tensor = self.normalize(inputs)
        if self.weight is None:
            return normed
        rows_SRD = _by_model(normed, len(self.weight))
        if self.bias is None:
            return (rows_SRD * self.weight[:, None]).view(inputs.shape)
        return torch.addcmul(self.bias[:, None], rows_SRD, self.weight[:, None]).view(inputs.shape)


REPLACED: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Linear: EnsembleLinear,
    nn.Embedding: EnsembleEmbedding,
    nn.LayerNorm: EnsembleNorm,
    nn.RMSNorm: EnsembleNorm,
}


def _stacked(parts: Sequence[nn.Module], name: str) -> nn.Parameter | None:
    """A weight of all models, with a leading dimension for the models."""
    if (first := getattr(parts[0], name)) is None:
        return None
    stack = torch.stack([getattr(part, name).detach() for part in parts])
    return nn.Parameter(stack, requires_grad=first.requires_grad)


def _by_model(tensor: Tensor, num_models: int) -> Tensor:
    """The rows of each model [S, R, D] of a tensor [S B, ..., D]."""
    if tensor.dim() < 2 or len(tensor) % num_models:
        raise Unstackable(f"a part reads a tensor {list(tensor.shape)}, not [batch, ...]")
    return tensor.reshape(num_models, -1, tensor.shape[-1])
