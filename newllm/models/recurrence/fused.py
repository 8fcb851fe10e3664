"""Carrying a cell over time at speed.

Shapes: B batch, T time (tokens), E input, H hidden.
"""

import torch
from torch import Tensor

from newllm.models.cell import Cell, ContextCell
from newllm.models.layer import State
from newllm.models.recurrence.compiled import Compiled
from newllm.models.recurrence.native.buffers import Memory
from newllm.models.recurrence.native.chunk import read_chunk
from newllm.models.recurrence.native.weights import has_native_code
from newllm.models.recurrence.reference import DropoutMasks, Recurrence, Reference, roll

FEW_STEPS = 4  # for fewer, packing the weights costs more than it saves


class Fused:
    """The fast recurrence: machine code for cells made of parts that it knows, there and back.

    Any other cell is carried by its compiled step.

    Args:
        compile: whether it is; false leaves such cells to the plain loop, and spares the seconds
            that compiling takes.
    """

    def __init__(self, compile: bool = True) -> None:
        self._memory = Memory()
        self._other: Recurrence = Compiled() if compile else Reference()

    def __call__(
        self,
        cell: Cell,
        inputs_BTE: Tensor,
        state: State,
        masks: DropoutMasks | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
        found: list[Tensor] | None = None,
    ) -> tuple[Tensor, State]:
        """Read a chunk, as `Recurrence` says."""
        chunk = inputs_BTE, state, masks, pad_BT, reset_BT
        if inputs_BTE.shape[1] < FEW_STEPS or torch.compiler.is_exporting():
            return roll(cell, *chunk)
        is_plain = not torch.is_autocast_enabled(inputs_BTE.device.type)
        if is_plain and has_native_code(cell):
            assert isinstance(cell, ContextCell)
            flags = pad_BT, reset_BT
            y_BTH, *after = read_chunk(cell, self._memory, inputs_BTE, *state, masks, *flags, found)
            return y_BTH, tuple(after)
        return self._other(cell, *chunk, found)
