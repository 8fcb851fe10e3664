"""Any cell over time on a GPU: segments of steps, each launched as a whole.

A step of a cell is some dozens of small kernels, and launching one takes longer than running it. A
CUDA graph launches all kernels of a segment at once. Where there is no GPU, a segment is computed
as it is written here.

Shapes: B batch, T time (tokens), E input, H output.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from newllm.models.cell import Cell
from newllm.models.layer import State
from newllm.models.recurrence.checking import autocast_dtype, check_against_loop
from newllm.models.recurrence.compiled import kind_of
from newllm.models.recurrence.reference import MASK_BLOCK, Chunk, roll
from newllm.models.recurrence.segment import Constants, Segment

GRAIN = 8  # the steps of a segment are a multiple; those that are too many count as padding
MAX_KINDS = 4  # of calls of each cell whose segments are kept, such as with and without resets


class Graphs:
    """Carries any cell over time in segments of at most `MASK_BLOCK` steps.

    It takes the plain loop without gradients, and for a cell whose steps cannot be repeated from
    memory: one that draws random numbers itself, or that asks for values.
    """

    def __init__(self) -> None:
        self._kinds: dict[Any, Segments | None] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphs:
        return Graphs()  # segments belong to the weights of their cell

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        return Graphs, ()

    @torch.compiler.disable
    def __call__(self, cell: Cell, chunk: Chunk) -> tuple[Tensor, State]:
        """Read a chunk."""
        if torch.is_grad_enabled() and (segments := self._segments(cell, chunk)):
            return segments.read(cell, chunk)
        return roll(cell, chunk)

    def _segments(self, cell: Cell, chunk: Chunk) -> Segments | None:
        tensors = (*cell.parameters(), *cell.buffers())
        kind = (id(cell), autocast_dtype(chunk), kind_of(cell, chunk))
        kind = (*kind, *(tensor.data_ptr() for tensor in tensors))
        segments = self._kinds.get(kind)
        if kind not in self._kinds or (segments and segments.batch_size < len(chunk.inputs_BTE)):
            self._kinds.pop(kind, None)
            of_cell = [known for known in self._kinds if known[0] == id(cell)]
            if len(of_cell) == MAX_KINDS:
                del self._kinds[of_cell[0]]
            segments = self._kinds[kind] = _segments_or_none(cell, chunk)
        return segments


class Segments:
    """The segments of a cell for one kind of call, used again when they have gone back."""

    def __init__(self, cell: Cell, chunk: Chunk) -> None:
        self.constants = Constants(cell, autocast_dtype(chunk))
        self.batch_size = len(chunk.inputs_BTE)
        # Of the chunk, only form, type and device; its tensors may hold the history of a pass.
        state = tuple(part.detach() for part in chunk.state)
        inputs_BTE = chunk.inputs_BTE[:, :1].detach().clone()
        self._like = chunk._replace(inputs_BTE=inputs_BTE, state=state)
        self._free: dict[int, list[Segment]] = defaultdict(list)

    def take(self, num_steps: int) -> Segment:
        """A segment of so many steps or a few more."""
        num_steps = -(-num_steps // GRAIN) * GRAIN
        free = self._free[num_steps]
        segment = free.pop() if free else Segment(self.constants, self._like, num_steps)
        segment.num_uses += 1
        return segment

    def give_back(self, segment: Segment) -> None:
        """Let the next call use it."""
        self._free[segment.num_steps].append(segment)

    def read(self, cell: Cell, chunk: Chunk) -> tuple[Tensor, State]:
        """Read a chunk."""
        initial = () if chunk.reset_BT is None else cell.initial_state(len(chunk.inputs_BTE))
        outputs_BTH, *state = _Read.apply(
            self, chunk, chunk.inputs_BTE, *chunk.state, *initial, *self.constants.parameters
        )
        return outputs_BTH, tuple(state)


class _Lease:
    """Segments that a call has taken, until it has gone back or is forgotten."""

    def __init__(self, owner: Segments) -> None:
        self._owner, self._segments = owner, list[Segment]()
        self._uses: list[int] = []
        self._is_over = False

    def take(self, num_steps: int) -> Segment:
        self._segments.append(self._owner.take(num_steps))
        self._uses.append(self._segments[-1].num_uses)
        return self._segments[-1]

    def segments(self) -> list[Segment]:
        """The segments, ready to go back.

        Raises:
            RuntimeError: they went back before, and another call has used them since.
        """
        if self._is_over:
            if self._uses != [segment.num_uses for segment in self._segments]:
                raise RuntimeError(
                    "a second backward pass through a recurrence comes too late: its memory is "
                    "used again; use recurrence=reference"
                )
            for segment in self._segments:  # going back has overwritten what it read
                segment.forward()
        return self._segments

    def end(self) -> None:
        if not self._is_over:
            self._is_over = True
            for segment in self._segments:
                self._owner.give_back(segment)

    def __del__(self) -> None:
        self.end()


class _Read(torch.autograd.Function):
    """Outputs [B, T, H] and the last state, from inputs, states and all parameters of a cell."""

    @staticmethod
    def forward(
        ctx: Any, segments: Segments, chunk: Chunk, inputs_BTE: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        batch_size, num_steps, _ = inputs_BTE.shape
        num_states = len(chunk.state)
        num_initial = 0 if chunk.reset_BT is None else num_states
        state, initial = tensors[:num_states], tensors[num_states:][:num_initial]
        segments.constants.refresh()
        lease, outputs = _Lease(segments), []
        for first in range(0, num_steps, MASK_BLOCK):
            length = min(MASK_BLOCK, num_steps - first)
            segment = lease.take(length)
            segment.load(chunk, first, length, state, initial)
            segment.forward()
            outputs.append(segment.outputs_KBH[:length, :batch_size])
            state = segment.after
        ctx.lease, ctx.shape = lease, (batch_size, num_steps)
        ctx.num_initial = num_initial
        # Only to notice a weight that is changed before the backward pass.
        ctx.save_for_backward(*tensors[num_states + num_initial :])
        after = [part[:batch_size].clone() for part in state]
        ctx.mark_non_differentiable(*(part for part in after if not part.is_floating_point()))
        return torch.cat(outputs).transpose(0, 1).contiguous(), *after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs_grad_BTH: Tensor, *state_grads: Tensor) -> tuple[Any, ...]:
        _ = ctx.saved_tensors
        batch_size, num_steps = ctx.shape
        segments, grads_TBH = ctx.lease.segments(), outputs_grad_BTH.transpose(0, 1)
        state: Sequence[Tensor | None] = state_grads
        inputs: list[Tensor] = []
        totals: list[Tensor | None] = []
        for segment, first in zip(
            reversed(segments), reversed(range(0, num_steps, MASK_BLOCK)), strict=True
        ):
            length = min(MASK_BLOCK, num_steps - first)
            segment.load_gradients(grads_TBH[first : first + length], state)
            segment.backward()
            found = segment.gradients
            inputs.append(found.inputs_KBE[:length, :batch_size])
            state = found.state
            summed = (*_rows(found.initial, batch_size), *found.parameters)
            totals = [*map(_sum, totals or [None] * len(summed), summed)]
        results = (
            torch.cat(inputs[::-1]).transpose(0, 1),
            *(None if part is None else part.clone() for part in _rows(state, batch_size)),
            *totals,
        )
        ctx.lease.end()
        return None, None, *results


def _rows(parts: Sequence[Tensor | None], batch_size: int) -> list[Tensor | None]:
    return [None if part is None else part[:batch_size] for part in parts]


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """The sum in memory of its own, since that of a segment is used again."""
    if part is None:
        return total
    return part.clone() if total is None else total.add_(part)


def _segments_or_none(cell: Cell, chunk: Chunk) -> Segments | None:
    device = chunk.inputs_BTE.device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            segments = Segments(cell, chunk)
            check_against_loop(segments.read, cell, chunk)
        return segments
    except Exception as error:  # of many kinds, and the plain loop is always right
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        name = type(cell).__name__
        print(f"{name}: steps cannot be captured, and take longer; {reason}", file=sys.stderr)
        return None
