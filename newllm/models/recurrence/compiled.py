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

from newllm.models.cell import Cell
from newllm.models.layer import State
from newllm.models.recurrence.notice import tell_of_compiling
from newllm.models.recurrence.reference import DropoutMasks, roll
from newllm.models.recurrence.step import Given, Step, Use, compile_step, linears_of, others_of

SECONDS = 10  # that compiling takes, roughly
Gradients = list[Tensor | None]
PLAIN = (bool, int, float, str, type)
# What every module has, but for hooks that are called in a step.
OF_TORCH = vars(nn.Module()).keys() - {"training", "_forward_hooks", "_forward_pre_hooks"}


class Compiled:
    """Carries any cell over time by its compiled step, in training on a CPU.

    It is the plain loop where no gradient is asked for, in autocast, and where nothing compiles or
    what was compiled does not give what the cell gives (a cell that draws random numbers by itself,
    for example). The compiler keeps its results on disk for later processes.
    """

    def __init__(self) -> None:
        self._steps: dict[Any, Step | None] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return self  # a compiled step holds no weights

    def __reduce__(self) -> tuple[type[Compiled], tuple[()]]:
        return Compiled, ()

    @torch.compiler.disable
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
        device = inputs_BTE.device.type
        if torch.is_grad_enabled() and device == "cpu" and not torch.is_autocast_enabled(device):
            chunk = Chunk(cell, inputs_BTE, state, masks, pad_BT, reset_BT)
            if step := self._step(chunk):
                return chunk.read_by(step)
        return roll(cell, inputs_BTE, state, masks, pad_BT, reset_BT)

    def _step(self, chunk: Chunk) -> Step | None:
        """A step for at least as many rows as the chunk has; None if there can be none."""
        kind = chunk.kind
        known = self._steps.get(kind)
        if kind not in self._steps or (known and known.batch_size < chunk.batch_size):
            self._steps[kind] = _compiled_or_none(chunk)
        return self._steps[kind]


def _compiled_or_none(chunk: Chunk) -> Step | None:
    name = type(chunk.cell).__name__
    try:
        # The compiler's warnings are nothing that anybody here could act on.
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            with tell_of_compiling(f"a step of {name}", SECONDS):
                return compile_step(chunk.cell, chunk.first)
    except Exception as error:  # a compiler raises many kinds, and the plain loop is always right
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "FakeTensor" in reason:
            reason = (
                "it uses a tensor that is not a parameter or buffer, or a Linear that is not called"
            )
        print(f"{name}: not compiled, and therefore slower; {reason}", file=sys.stderr)
        return None


class Chunk:
    """A chunk to read, and the cell that reads it; arguments as of a `Recurrence`."""

    def __init__(
        self,
        cell: Cell,
        inputs_BTE: Tensor,
        state: State,
        masks: DropoutMasks | None,
        pad_BT: Tensor | None,
        reset_BT: Tensor | None,
    ) -> None:
        self.cell, self.inputs_BTE, self.state, self.masks = cell, inputs_BTE, state, masks
        self.batch_size, self.num_steps, _ = inputs_BTE.shape
        nowhere_BT = torch.zeros(inputs_BTE.shape[:2], dtype=torch.bool)
        self.flags = [nowhere_BT if pad_BT is None else pad_BT]
        self.flags += [] if reset_BT is None else [reset_BT]
        self.initial = () if reset_BT is None else cell.initial_state(self.batch_size)

    @property
    def kind(self) -> Any:
        """What a compiled step depends on, but for the size of the batch."""
        settings = (
            (
                name,
                type(part),
                *((key, _frozen(own)) for key, own in vars(part).items() if key not in OF_TORCH),
            )
            for name, part in self.cell.named_modules()
        )
        tensors = (*self.cell.parameters(), *self.cell.buffers())
        shapes = ((tensor.shape, tensor.dtype) for tensor in tensors)
        given = self.masks is None, len(self.flags), torch.get_num_threads()
        return (*settings, *shapes, self.inputs_BTE.dtype, *given)

    @property
    def first(self) -> Given:
        """What the first step is given; its addends follow from the cell."""
        return Given(
            self.inputs_BTE[:, 0],
            self.state,
            next(self.masks.steps(1)) if self.masks else (),
            [flags_BT[:, 0] for flags_BT in self.flags],
            self.initial,
            (),
            [linear.weight for linear in linears_of(self.cell)],
            list(others_of(self.cell).values()),
        )

    def read_by(self, step: Step) -> tuple[Tensor, State]:
        """Outputs and state; where the step takes more rows, the last one is repeated."""
        row_B = torch.arange(step.batch_size).clamp(max=self.batch_size - 1)

        def wide(tensor: Tensor) -> Tensor:
            return (tensor if len(row_B) == self.batch_size else tensor[row_B]).contiguous()

        num_steps, linears = self.num_steps, linears_of(self.cell)
        masks = self.masks.steps(num_steps) if self.masks else repeat((), num_steps)
        flags = [wide(flags_BT).t().contiguous().unbind() for flags_BT in self.flags]
        outputs_TBH, *state = _Read.apply(
            step,
            [[*map(wide, masks_of_step)] for masks_of_step in masks],
            list(zip(*flags, strict=True)),
            wide(self.inputs_BTE).transpose(0, 1).contiguous(),
            *map(wide, (*self.state, *self.initial)),
            *(linear.weight.contiguous() for linear in linears),
            *(linear.bias for linear in linears),
            *(tensor.contiguous() for tensor in others_of(self.cell).values()),
        )
        after = tuple(part[: self.batch_size] for part in state)
        # In the order of other recurrences, which decides how torch's dropout rounds.
        return outputs_TBH.transpose(0, 1)[: self.batch_size].contiguous(), after


def _frozen(value: Any) -> Any:
    """A setting as a key: equal where the setting is, or the very same object."""
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in value.items())
    return value if value is None or isinstance(value, PLAIN) else Same(value)


class Same:
    """Equal to itself alone; keeps what it stands for alive, so that no other takes its place."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


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
            torch.zeros_like(like)
            if biases[use.number] is None
            else biases[use.number].expand_as(like).contiguous()
            for use, like in zip(step.uses, example.addends, strict=True)
        ]
        num_results = max([len(state), *(use.source for use in step.uses)]) + 1
        results, kept = [], []
        for inputs_BE, own_masks, own_flags in zip(inputs_TBE.unbind(), masks, flags, strict=True):
            given = Given(inputs_BE, state, own_masks, own_flags, initial, addends, weights, others)
            found = step.forward(given.flat())
            state = list(found[1 : 1 + len(state)])
            results.append(found[:num_results])
            kept.append(found[num_results:])
        ctx.step, ctx.results, ctx.kept = step, results, kept
        ctx.has_bias = [bias is not None for bias in biases]
        return torch.stack([found[0] for found in results]), *state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs_grad_TBH: Tensor, *state_grads: Tensor) -> tuple[Any, ...]:
        example: Given = ctx.step.example
        learned = [part.is_floating_point() for part in example.state]
        state = [
            grad.contiguous()
            for grad, is_learned in zip(state_grads, learned, strict=True)
            if is_learned
        ]
        inputs: list[Tensor] = []
        addends: list[Sequence[Tensor]] = []
        sums: Gradients = [None] * (len(example.initial) + len(example.others))
        grads_of_steps = reversed(outputs_grad_TBH.contiguous().unbind())
        for kept, grad_BH in zip(reversed(ctx.kept), grads_of_steps, strict=True):
            grads = example.grouped(ctx.step.backward([*kept, grad_BH, *state]))
            state = [
                torch.zeros_like(part) if grad is None else grad.contiguous()
                for part, grad, is_learned in zip(example.state, grads.state, learned, strict=True)
                if is_learned
            ]
            inputs.append(
                torch.zeros_like(example.inputs) if grads.inputs is None else grads.inputs
            )
            addends.append(grads.addends)
            sums = [*map(_sum, sums, (*grads.initial, *grads.others))]
        of_linears = _linear_gradients(ctx.step.uses, ctx.results, addends[::-1], ctx.has_bias)
        remaining = iter(state)
        of_state = [next(remaining) if is_learned else None for is_learned in learned]
        initial, others = sums[: len(example.initial)], sums[len(example.initial) :]
        of_inputs_TBE = torch.stack(inputs[::-1])
        return None, None, None, of_inputs_TBE, *of_state, *initial, *of_linears, *others


def _linear_gradients(
    uses: Sequence[Use],
    results: Sequence[Sequence[Tensor]],
    grads: Sequence[Sequence[Tensor]],
    has_bias: Sequence[bool],
) -> Gradients:
    """Of all weights, then of all biases: one product for all steps of a use.

    Args:
        uses: of Linears in each step.
        results: of each step, among them what the Linears read.
        grads: with respect to the addends of each step.
        has_bias: whether each Linear has one.
    """
    weights: Gradients = [None] * len(has_bias)
    biases: Gradients = [None] * len(has_bias)
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
