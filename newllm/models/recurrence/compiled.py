"""Any cell over time, faster than the plain loop: a loop over its compiled step, without autograd.

Shapes: B batch, T time (tokens), E input, H output, R rows and I and O features of a Linear.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from itertools import islice, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from newllm.models.cell import Cell
from newllm.models.layer import State
from newllm.models.recurrence.notice import tell_of_compiling
from newllm.models.recurrence.reference import Chunk, roll
from newllm.models.recurrence.step import (
    Step,
    StepArguments,
    Use,
    compile_step,
    linears_of,
    others_of,
)

SECONDS = 10  # that compiling takes, roughly
MOST_ROWS = 64  # of a compiled step; more rows are read in groups, so that few need few
# Attributes of every module that change no step. Hooks do.
OF_TORCH = vars(nn.Module()).keys() - {"training", "_forward_hooks", "_forward_pre_hooks"}


class Compiled:
    """Carries any cell over time by its compiled step, for training on a CPU.

    It takes the plain loop without gradients, in autocast, where no compiler works, and for a cell
    that draws random numbers itself.
    """

    def __init__(self) -> None:
        self._steps: dict[Any, Step | None] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return self  # a compiled step holds no weights

    def __reduce__(self) -> tuple[type[Compiled], tuple[()]]:
        return Compiled, ()

    @torch.compiler.disable
    def __call__(self, cell: Cell, chunk: Chunk) -> tuple[Tensor, State]:
        """Read a chunk."""
        device = chunk.inputs_BTE.device.type
        if torch.is_grad_enabled() and device == "cpu" and not torch.is_autocast_enabled(device):
            kind = kind_of(cell, chunk)
            step = self._steps.get(kind)
            num_rows = min(len(chunk.inputs_BTE), MOST_ROWS)
            if kind not in self._steps or (step and step.batch_size < num_rows):
                step = self._steps[kind] = _compiled_or_none(cell, chunk)
            if step:
                return _read(step, cell, chunk)
        return roll(cell, chunk)


def kind_of(cell: Cell, chunk: Chunk) -> Any:
    """Key of everything that a compiled step depends on, except for the size of the batch."""
    settings = (
        (
            name,
            type(part),
            *((key, repr(own)) for key, own in vars(part).items() if key not in OF_TORCH),
        )
        for name, part in cell.named_modules()
    )
    tensors = ((each.shape, each.dtype) for each in (*cell.parameters(), *cell.buffers()))
    has_masks, has_resets = chunk.masks is not None, chunk.reset_BT is not None
    given = chunk.inputs_BTE.dtype, has_masks, has_resets, torch.get_num_threads()
    return (*settings, *tensors, *given)


def _compiled_or_none(cell: Cell, chunk: Chunk) -> Step | None:
    name = type(cell).__name__
    first = StepArguments(
        chunk.inputs_BTE[:MOST_ROWS, 0],
        [part[:MOST_ROWS] for part in chunk.state],
        [mask[:MOST_ROWS] for mask in next(chunk.masks.steps(1))] if chunk.masks else (),
        [flags_BT[:MOST_ROWS, 0] for flags_BT in _flags(chunk)],
        [part[:MOST_ROWS] for part in _initial(cell, chunk)],
        (),
        [linear.weight for linear in linears_of(cell)],
        list(others_of(cell).values()),
    )
    try:
        # Nobody here could act on the compiler's warnings.
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            with tell_of_compiling(f"a step of {name}", SECONDS):
                return compile_step(cell, first)
    except Exception as error:  # a compiler raises many kinds, and the plain loop is always right
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "FakeTensor" in reason:
            reason = (
                "it uses a tensor that is not a parameter or buffer, or a Linear that is not called"
            )
        print(f"{name}: not compiled, and therefore slower; {reason}", file=sys.stderr)
        return None


def _flags(chunk: Chunk) -> list[Tensor]:
    """Where there is padding, and resets if any."""
    nowhere_BT = torch.zeros(chunk.inputs_BTE.shape[:2], dtype=torch.bool)
    pad_BT = nowhere_BT if chunk.pad_BT is None else chunk.pad_BT
    return [pad_BT] if chunk.reset_BT is None else [pad_BT, chunk.reset_BT]


def _initial(cell: Cell, chunk: Chunk) -> State:
    """The state after a reset; nothing if there is none."""
    return () if chunk.reset_BT is None else cell.initial_state(len(chunk.inputs_BTE))


def _read(step: Step, cell: Cell, chunk: Chunk) -> tuple[Tensor, State]:
    """Outputs and state, of as many rows at a time as the step takes."""
    num_steps = chunk.inputs_BTE.shape[1]
    masks = [*(chunk.masks.steps(num_steps) if chunk.masks else repeat((), num_steps))]
    groups = torch.arange(len(chunk.inputs_BTE)).split(step.batch_size)
    read = [_read_rows(step, cell, chunk, masks, row_B) for row_B in groups]
    # In the memory order of other recurrences, which decides how torch's dropout rounds.
    y_BTH, *state = (torch.cat(parts).contiguous() for parts in zip(*read, strict=True))
    return y_BTH, tuple(state)


def _read_rows(
    step: Step, cell: Cell, chunk: Chunk, masks: Sequence[Sequence[Tensor]], row_B: Tensor
) -> tuple[Tensor, ...]:
    """Outputs and state of some rows; the last is repeated if the step takes more."""
    num_rows = len(row_B)
    wide_B = F.pad(row_B, (0, step.batch_size - num_rows), value=int(row_B[-1]))

    def wide(tensor: Tensor) -> Tensor:
        is_whole = len(tensor) == num_rows == step.batch_size
        return (tensor if is_whole else tensor[wide_B]).contiguous()

    linears = linears_of(cell)
    flags = [wide(flags_BT).t().contiguous().unbind() for flags_BT in _flags(chunk)]
    outputs_TBH, *state = _Read.apply(
        step,
        [[*map(wide, masks_of_step)] for masks_of_step in masks],
        list(zip(*flags, strict=True)),
        wide(chunk.inputs_BTE).transpose(0, 1).contiguous(),
        *map(wide, (*chunk.state, *_initial(cell, chunk))),
        *(linear.weight.contiguous() for linear in linears),
        *(linear.bias for linear in linears),
        *(tensor.contiguous() for tensor in others_of(cell).values()),
    )
    return tuple(part[:num_rows] for part in (outputs_TBH.transpose(0, 1), *state))


class _Read(torch.autograd.Function):
    """Outputs [T, B, H] and the last state from inputs [T, B, E], a state, and all weights."""

    @staticmethod
    def forward(
        ctx: Any,
        step: Step,
        masks: Sequence[Sequence[Tensor]],
        flags: Sequence[Sequence[Tensor]],
        inputs_TBE: Tensor,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        example, items = step.example, iter(tensors)
        sizes = (len(example.state), len(example.initial), *[len(example.weights)] * 2)
        state, initial, weights, biases = (list(islice(items, size)) for size in sizes)
        others = list(items)
        addends = [
            torch.zeros_like(like) if bias is None else bias.expand_as(like).contiguous()
            for like, bias in zip(
                example.addends, (biases[use.number] for use in step.uses), strict=True
            )
        ]
        num_results = max([len(state), *(use.source for use in step.uses)]) + 1
        results, kept = [], []
        for inputs_BE, own_masks, own_flags in zip(inputs_TBE.unbind(), masks, flags, strict=True):
            given = StepArguments(
                inputs_BE, state, own_masks, own_flags, initial, addends, weights, others
            )
            found = step.forward(given.flat())
            state = list(found[1 : 1 + len(state)])
            results.append(found[:num_results])
            kept.append(found[num_results:])
        ctx.step, ctx.results, ctx.kept = step, results, kept
        ctx.has_bias = [bias is not None for bias in biases]
        # What is returned gets this node as its history: kept by the node, it would keep itself.
        return torch.stack([found[0] for found in results]), *(part.clone() for part in state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs_grad_TBH: Tensor, *state_grads: Tensor) -> tuple[Any, ...]:
        example: StepArguments = ctx.step.example
        state = [*map(_dense, state_grads, example.state)]
        inputs: list[Any] = []
        addends: list[Sequence[Tensor]] = []
        sums: list[Tensor | None] = [None] * (len(example.initial) + len(example.others))
        grads_of_steps = reversed(outputs_grad_TBH.contiguous().unbind())
        for kept, grad_BH in zip(reversed(ctx.kept), grads_of_steps, strict=True):
            learned = [grad for grad in state if grad is not None]
            grads = example.grouped(ctx.step.backward([*kept, grad_BH, *learned]))
            state = [*map(_dense, grads.state, example.state)]
            inputs.append(_dense(grads.inputs, example.inputs))
            addends.append(grads.addends)
            sums = [*map(_sum, sums, (*grads.initial, *grads.others))]
        of_linears = _linear_gradients(ctx.step.uses, ctx.results, addends[::-1], ctx.has_bias)
        initial, others = sums[: len(example.initial)], sums[len(example.initial) :]
        of_inputs_TBE = torch.stack(inputs[::-1])
        return None, None, None, of_inputs_TBE, *state, *initial, *of_linears, *others


def _dense(grad: Tensor | None, like: Tensor) -> Tensor | None:
    """A contiguous gradient, zeros if it is missing; None for whole numbers."""
    if not like.is_floating_point():
        return None
    return torch.zeros_like(like) if grad is None else grad.contiguous()


def _linear_gradients(
    uses: Sequence[Use],
    results: Sequence[Sequence[Tensor]],
    grads: Sequence[Sequence[Tensor]],
    has_bias: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of all weights, then of all biases: one product for all steps of a use."""
    weights: list[Tensor | None] = [None] * len(has_bias)
    biases: list[Tensor | None] = [None] * len(has_bias)
    for index, (number, source) in enumerate(uses):
        read_RI = torch.cat([found[source].flatten(0, -2) for found in results])
        grad_RO = torch.cat([own[index].flatten(0, -2) for own in grads])
        weights[number] = _sum(weights[number], grad_RO.t() @ read_RI)
        if has_bias[number]:
            biases[number] = _sum(biases[number], grad_RO.sum(0))
    return [*weights, *biases]


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first.add_(second)
