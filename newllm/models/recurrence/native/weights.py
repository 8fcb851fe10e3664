"""A cell's weights in the order in which the native code reads them."""

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from newllm.models.cell import Cell, ContextCell
from newllm.models.fnn import ResidualFNN
from newllm.models.gating import Additive, LSTMGating
from newllm.models.recurrence.built_in import is_built_in
from newllm.models.recurrence.native.buffers import Buffers, Memory
from newllm.models.recurrence.native.call import padded


def has_native_code(cell: Cell) -> bool:
    """Whether `native` does just what the cell would do.

    So every part must be built in, and all weights of one type and where native code can reach
    them.
    """
    weights = list(cell.parameters())
    return (
        is_built_in(cell)
        and {weight.dtype for weight in weights} in ({torch.float32}, {torch.float64})
        and all(weight.device.type == "cpu" and weight.is_contiguous() for weight in weights)
    )


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
        self.packing, self.num_forward, size = self._packing()
        self.num_packed = 0
        self._buffers = Buffers(memory, self.dtype)
        self.packed = self._buffers.matrix(1, size)

    def _packing(self) -> tuple[np.ndarray, int, int]:
        """The table of what to pack, in `native`'s order; how many entries a way forward needs, and
        how many elements all of them make.
        """
        matrices = [self.context_weight]
        matrices += [linear.weight.detach() for linear in (*self.layers, *self.heads)]
        vectors: list[tuple[Tensor | None, int, int]] = [
            (linear.bias, linear.out_features, 0) for linear in (*self.layers, *self.heads)
        ]
        sizes = [self.cell.context_dim, *[self.cell.hidden_dim] * (len(self.norms) - 1)]
        for norm, size in zip(self.norms, sizes, strict=True):
            weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
            vectors += [(weight, size, 1), (bias, size, 0)]
        rows: list[tuple[int, ...]] = []
        end = 0

        def add(address: int, strides: tuple[int, ...], shape: tuple[int, ...], fill: int) -> None:
            nonlocal end
            rows.append((address, *strides, *shape, end, fill))
            end += padded(shape[0]) * shape[1]

        for matrix in matrices:
            add(matrix.data_ptr(), matrix.stride(), matrix.shape, 0)
        for vector, size, fill in vectors:
            add(0 if vector is None else vector.data_ptr(), (1, 1), (size, 1), fill)
        num_forward = len(rows)
        for matrix in matrices:
            add(matrix.data_ptr(), matrix.stride()[::-1], matrix.shape[::-1], 0)
        return np.array(rows, np.int64), num_forward, end
