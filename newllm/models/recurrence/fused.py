"""Carrying a cell over time at speed.

Shapes: B batch, T time (tokens), K steps of a segment, E embedding, C context, H hidden.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat

import torch
from torch import Tensor

from newllm.models.cell import ContextCell
from newllm.models.recurrence.deferred import deferred_gradients
from newllm.models.recurrence.native.buffers import Memory
from newllm.models.recurrence.native.segment import Inputs, read_segment
from newllm.models.recurrence.native.weights import Weights, has_native_code
from newllm.models.recurrence.reference import MASK_BLOCK, DropoutMasks, Rollout, roll

FEW_STEPS = 4  # for fewer, transposing the weights costs more than it saves


class Fused:
    """The fast recurrence: what `Reference` gives and its gradients, but no gates.

    Any cell gets transposed weights, and their gradients in one product a Linear (`deferred`). A
    cell made of parts that `native` knows takes all its steps in machine code, there and back.

    Args:
        recompute: let `ContextModel.score`, which training calls, keep the contexts only and
            compute everything else again in the backward pass, all steps of a block at once: far
            less memory for long sequences, for more time.
        native: use machine code where there is some; false leaves what works for any cell.
    """

    def __init__(self, recompute: bool = False, native: bool = True) -> None:
        self.recompute = recompute
        self.native = native
        self._memory = Memory()

    def __call__(
        self,
        cell: ContextCell,
        embedded_BTE: Tensor,
        context_BC: Tensor,
        masks: DropoutMasks | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
        known_BTC: Tensor | None = None,
    ) -> Rollout:
        """Read a chunk, as `Recurrence` says."""
        num_steps = embedded_BTE.shape[1]
        if num_steps < FEW_STEPS or torch.compiler.is_exporting():
            step_masks = None if masks is None else masks.steps(num_steps)
            return roll(cell, embedded_BTE, context_BC, pad_BT, reset_BT, step_masks)
        return self._carry(cell, embedded_BTE, context_BC, masks, pad_BT, reset_BT, known_BTC)

    @torch.compiler.disable  # a compiler can neither look into machine code nor needs to
    def _carry(
        self,
        cell: ContextCell,
        embedded_BTE: Tensor,
        context_BC: Tensor,
        masks: DropoutMasks | None,
        pad_BT: Tensor | None,
        reset_BT: Tensor | None,
        known_BTC: Tensor | None,
    ) -> Rollout:
        read = self._reader(cell, embedded_BTE.device)
        hiddens, contexts = [], []
        for inputs, known_BKC in _segments(embedded_BTE, pad_BT, reset_BT, masks, known_BTC):
            hidden_BKH, contexts_BKC = read(inputs, context_BC, known_BKC)
            context_BC = contexts_BKC[:, -1]
            hiddens.append(hidden_BKH)
            contexts.append(contexts_BKC)
        return Rollout(torch.cat(hiddens, dim=1), torch.cat(contexts, dim=1), {})

    def _reader(
        self, cell: ContextCell, device: torch.device
    ) -> Callable[[Inputs, Tensor, Tensor | None], tuple[Tensor, Tensor]]:
        is_plain = not torch.is_autocast_enabled(device.type)
        if self.native and is_plain and has_native_code(cell):
            return partial(read_segment, Weights(cell, self._memory))
        return partial(_read_deferred, cell)


def _segments(
    embedded_BTE: Tensor,
    pad_BT: Tensor | None,
    reset_BT: Tensor | None,
    masks: DropoutMasks | None,
    known_BTC: Tensor | None,
) -> Iterator[tuple[Inputs, Tensor | None]]:
    """Cut a chunk where the blocks of its dropout masks end."""
    pads, resets, knowns = (
        repeat(None) if tensor is None else tensor.split(MASK_BLOCK, dim=1)
        for tensor in (pad_BT, reset_BT, known_BTC)
    )
    parts = zip(embedded_BTE.split(MASK_BLOCK, dim=1), pads, resets, knowns, strict=False)
    for index, (embedded_BKE, pad_BK, reset_BK, known_BKC) in enumerate(parts):
        own = None if masks is None else masks.starting_at(index * MASK_BLOCK)
        yield Inputs(embedded_BKE, pad_BK, reset_BK, own), known_BKC


def _read_deferred(
    cell: ContextCell, inputs: Inputs, context_BC: Tensor, known_BKC: Tensor | None
) -> tuple[Tensor, Tensor]:
    num_steps = inputs.embedded_BKE.shape[1]
    step_masks = None if inputs.masks is None else inputs.masks.steps(num_steps)
    with deferred_gradients(cell):
        rollout = roll(
            cell, inputs.embedded_BKE, context_BC, inputs.pad_BK, inputs.reset_BK, step_masks
        )
    return rollout.hidden_BTH, rollout.contexts_BTC
