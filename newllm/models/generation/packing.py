"""The weights of a model in the order in which a step reads them."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from newllm.models.cell import ContextCell
from newllm.models.fnn import ResidualFNN
from newllm.models.gating import LSTMGating
from newllm.models.generation.call import ALIGNMENT, BLOCK, padded


def packed_weights(cells: Sequence[ContextCell], output: nn.Linear, choices_N: Tensor) -> Tensor:
    """The weights of all cells and of the output layer's rows for the choices, as one vector.

    A linear layer is its bias, then its matrix; see `_linear`.
    """
    parts = [part for cell in cells for part in _cell(cell)]
    parts += _linear(output.weight[choices_N], output.bias[choices_N])
    return torch.cat([part.detach().flatten() for part in parts])


def _cell(cell: ContextCell) -> list[Tensor]:
    parts = _linear(cell.input.weight, cell.input.bias)
    for depth, layer in enumerate(cell.fnn.layers):
        linear = cast(nn.Linear, layer)
        if isinstance(cell.fnn, ResidualFNN):
            parts += _norm(cast(nn.LayerNorm, cell.fnn.norms[depth]), cell.hidden_dim)
        parts += _linear(linear.weight, linear.bias)
    if isinstance(cell.fnn, ResidualFNN):
        parts += _norm(cell.fnn.final_norm, cell.hidden_dim)
    for head in heads_of(cell):
        parts += _linear(head.weight, head.bias)
    if isinstance(cell.normalization, nn.LayerNorm):
        parts += _norm(cell.normalization, cell.context_dim)
    return parts


def heads_of(cell: ContextCell) -> list[nn.Linear]:
    """The linear layers of the gating: delta, and with gates also forget and input."""
    heads = [cast(nn.Linear, cell.gating.delta)]
    if isinstance(cell.gating, LSTMGating):
        heads += [cell.gating.forget_gate, cell.gating.input_gate]
    return heads


def _linear(weight_NK: Tensor, bias_N: Tensor) -> list[Tensor]:
    """The bias, then P[block, k, n] = weight[block * BLOCK + n, k], with zeros for the padding."""
    num_outputs, depth = weight_NK.shape
    wide_NK = weight_NK.new_zeros(padded(num_outputs), depth)
    wide_NK[:num_outputs] = weight_NK
    return [
        _lengthened(bias_N, padded(num_outputs)),
        wide_NK.view(-1, BLOCK, depth).transpose(1, 2).contiguous(),
    ]


def _norm(norm: nn.LayerNorm, size: int) -> list[Tensor]:
    """Epsilon, weight and bias."""
    like = torch.empty(0)
    weight = like.new_ones(size) if norm.weight is None else norm.weight
    bias = like.new_zeros(size) if norm.bias is None else norm.bias
    length = norm_length(size)
    return [
        _lengthened(like.new_tensor([norm.eps]), ALIGNMENT),
        *(_lengthened(vector, length) for vector in (weight, bias)),
    ]


def norm_length(size: int) -> int:
    """Elements that each vector of a norm takes."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _lengthened(vector_N: Tensor, length: int) -> Tensor:
    longer = vector_N.new_zeros(length)
    longer[: len(vector_N)] = vector_N
    return longer
