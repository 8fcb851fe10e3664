"""A cell's weights in the order in which the native code reads them."""

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from newllm.models.buffers import Buffers, Memory
from newllm.models.cell import ContextCell
from newllm.models.fnn import PlainFNN, ResidualFNN
from newllm.models.gating import Additive, LSTMGating
from newllm.models.native.plan import padded

PARTS = (ContextCell, PlainFNN, ResidualFNN, Additive, LSTMGating, nn.Linear, nn.LayerNorm)
CONTAINERS = (nn.ModuleList, nn.Identity)


def has_native_code(cell: ContextCell) -> bool:
    """Whether the cell is made of parts that `native` has code for, and lies where it can run."""
    return (
        all(type(part) in (*PARTS, *CONTAINERS) for part in cell.modules())
        and all(
            weight.device.type == "cpu"
            and weight.dtype in (torch.float32, torch.float64)
            and weight.is_contiguous()
            for weight in cell.parameters()
        )
        and all(linear.bias is not None for linear in _linears(cell))
    )


def _linears(cell: ContextCell) -> Iterator[nn.Linear]:
    return (part for part in cell.modules() if isinstance(part, nn.Linear))


class Weights:
    """The weights of a cell, packed by the first segment of a chunk for all of them."""

    def __init__(self, cell: ContextCell, memory: Memory) -> None:
        self.cell, self.memory = cell, memory
        self.parameters = list(cell.parameters())
        self.dtype = cell.input.weight.dtype
        self.is_residual = isinstance(cell.fnn, ResidualFNN)
        gating = cell.gating
        assert isinstance(gating, Additive | LSTMGating)
        self.heads = [gating.delta]
        if isinstance(gating, LSTMGating):
            self.heads += [gating.forget_gate, gating.input_gate]
        self.layers = [cast(nn.Linear, linear) for linear in cell.fnn.layers]
        self.norms: list[nn.LayerNorm | None] = [None] * (len(self.layers) + 2)
        if isinstance(cell.normalization, nn.LayerNorm):
            self.norms[0] = cell.normalization
        if isinstance(cell.fnn, ResidualFNN):
            self.norms[1:] = [*cast(list[nn.LayerNorm], cell.fnn.norms), cell.fnn.final_norm]
        self.epsilons = np.array([norm.eps if norm else 0.0 for norm in self.norms])
        embedding_dim = cell.input.in_features - cell.context_dim
        weight = cell.input.weight.detach()
        self.embedding_weight, self.context_weight = weight.split(
            [embedding_dim, cell.context_dim], dim=1
        )
        self.packing, size = self._packing()
        self.is_packed = False
        self._buffers = Buffers(memory, self.dtype)
        self.packed = self._buffers.matrix(1, size)

    def _packing(self) -> tuple[np.ndarray, int]:
        """The table of what to pack, and how many elements that makes; the order is `native`'s."""
        matrices = [self.context_weight, *(linear.weight.detach() for linear in self.layers)]
        heads = [linear.weight.detach() for linear in self.heads]
        everything = [*matrices, *heads, *(matrix.t() for matrix in (*matrices, *heads))]
        rows: list[tuple[int, ...]] = []
        end = 0
        for matrix in everything:
            num_rows, depth = matrix.shape
            rows.append((matrix.data_ptr(), *matrix.stride(), num_rows, depth, end, 0))
            end += padded(num_rows) * depth
        vectors: list[tuple[Tensor | None, int, int]] = [
            (linear.bias, linear.out_features, 0) for linear in (*self.layers, *self.heads)
        ]
        sizes = [self.cell.context_dim, *[self.cell.hidden_dim] * (len(self.norms) - 1)]
        for norm, size in zip(self.norms, sizes, strict=True):
            weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
            vectors += [(weight, size, 1), (bias, size, 0)]
        for vector, size, fill in vectors:
            address = 0 if vector is None else vector.data_ptr()
            rows.append((address, 1, 1, size, 1, end, fill))
            end += padded(size)
        return np.array(rows, np.int64), end
