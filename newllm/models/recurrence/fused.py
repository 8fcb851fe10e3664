"""The fast recurrence of each device."""

import torch
from torch import Tensor

from newllm.models.cell import Cell, ContextCell
from newllm.models.layer import State
from newllm.models.recurrence.compiled import Compiled
from newllm.models.recurrence.graphs import Graphs
from newllm.models.recurrence.native.buffers import Memory
from newllm.models.recurrence.native.chunk import read_chunk
from newllm.models.recurrence.native.weights import has_native_code
from newllm.models.recurrence.reference import Chunk, Recurrence, Reference, roll

FEW_STEPS = 4  # for fewer, packing the weights costs more than it saves


class Fused:
    """What is fastest on a device.

    On a CPU, that is native code for a `ContextCell` of built-in parts, and its compiled step for
    any other cell. On a GPU, it is `Graphs` for every cell.

    Args:
        compile: whether to compile other cells on a CPU. False leaves them to the plain loop and
            saves the seconds of compiling.
    """

    def __init__(self, compile: bool = True) -> None:
        self._memory = Memory()
        self._graphs = Graphs()
        self._other: Recurrence = Compiled() if compile else Reference()

    def __call__(self, cell: Cell, chunk: Chunk) -> tuple[Tensor, State]:
        """Read a chunk."""
        if chunk.inputs_BTE.shape[1] < FEW_STEPS or torch.compiler.is_exporting():
            return roll(cell, chunk)
        device = chunk.inputs_BTE.device.type
        if device == "cuda":
            return self._graphs(cell, chunk)
        if device != "cpu" or torch.is_autocast_enabled(device) or not has_native_code(cell):
            return self._other(cell, chunk)
        assert isinstance(cell, ContextCell)
        y_BTH, *after = read_chunk(cell, self._memory, chunk.inputs_BTE, *chunk.state, *chunk[2:])
        return y_BTH, tuple(after)
