"""A chunk of steps of the context cell, read by native code: what the rest of the package calls.

Shapes: B batch, T time (tokens), K steps of a segment, E input, C context, H hidden.
"""

from collections.abc import Iterator
from itertools import repeat

import torch
from torch import Tensor

from newllm.models.cell import ContextCell
from newllm.models.recurrence import reference
from newllm.models.recurrence.native.buffers import Memory
from newllm.models.recurrence.native.segment import Inputs, read_segment
from newllm.models.recurrence.native.weights import Weights
from newllm.models.recurrence.reference import DropoutMasks


@torch.compiler.disable  # a compiler can neither look into native code nor needs to
def read_chunk(
    cell: ContextCell,
    memory: Memory,
    inputs_BTE: Tensor,
    context_BC: Tensor,
    masks: DropoutMasks | None,
    pad_BT: Tensor | None,
    reset_BT: Tensor | None,
    found: list[Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """The hidden vectors [B, T, H] and the last context [B, C], as a `Recurrence` gives them.

    What `found` holds are the contexts of each segment; who knows them takes all steps at once.
    """
    weights = Weights(cell, memory)
    hiddens = []
    for inputs in _segments(inputs_BTE, pad_BT, reset_BT, masks):
        known_BKC = found.pop(0) if found and torch.is_grad_enabled() else None
        hidden_BKH, contexts_BKC = read_segment(weights, inputs, context_BC, known_BKC)
        if found is not None and not torch.is_grad_enabled():
            found.append(contexts_BKC)
        context_BC = contexts_BKC[:, -1]
        hiddens.append(hidden_BKH)
    return torch.cat(hiddens, dim=1), context_BC


def _segments(
    inputs_BTE: Tensor,
    pad_BT: Tensor | None,
    reset_BT: Tensor | None,
    masks: DropoutMasks | None,
) -> Iterator[Inputs]:
    """Cut a chunk where the blocks of its dropout masks end."""
    size = reference.MASK_BLOCK
    pads, resets = (
        repeat(None) if flags_BT is None else flags_BT.split(size, dim=1)
        for flags_BT in (pad_BT, reset_BT)
    )
    parts = zip(inputs_BTE.split(size, dim=1), pads, resets, strict=False)
    for index, (inputs_BKE, pad_BK, reset_BK) in enumerate(parts):
        own = None if masks is None else masks.starting_at(index * size)
        yield Inputs(inputs_BKE, pad_BK, reset_BK, own)
