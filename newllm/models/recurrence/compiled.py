"""Any cell over time, faster than the plain loop: its step is compiled, forward and backward.

The loop over time runs outside of autograd. In the compiled step a Linear reads its weight as a
constant, and in the place of its bias an addend of that step alone. The gradient of the addend is
that of the Linear's output; with what the Linear read, it gives the gradient of the weight in one
product for all steps, instead of one for each.

Shapes: B batch, T time (tokens), E input, H output, I and O features of a Linear, R its rows.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F

from newllm.models.cell import Cell
from newllm.models.layer import State, where_row
from newllm.models.recurrence.notice import tell_of_compiling
from newllm.models.recurrence.reference import DropoutMasks, roll

SECONDS = 10  # that compiling takes, roughly
TOLERANCE = 1e-3  # of the largest value, by which a compiled step may differ from the cell
Kernel = Callable[[list[Tensor]], Sequence[Any]]
Gradients = list[Tensor | None]


class Given(NamedTuple):
    """What a step is given; the first four anew at each token."""

    inputs: Tensor
    state: Sequence[Tensor]
    masks: Sequence[Tensor]
    flags: Sequence[Tensor]  # bool [B]: padding; resets, where there are any
    initial: Sequence[Tensor]  # the state after a reset; nothing where there is none
    addends: Sequence[Tensor]  # [B, O], one for each use of a Linear
    weights: Sequence[Tensor]  # of the Linears, [O, I]
    others: Sequence[Tensor]  # all other parameters and buffers

    def flat(self) -> list[Tensor]:
        """All tensors in order."""
        return [self.inputs, *(tensor for group in self[1:] for tensor in group)]

    def grouped(self, flat: Iterable[Any]) -> Given:
        """Items in the order of `flat`, in groups as large as those here."""
        items = iter(flat)
        return Given(next(items), *(list(islice(items, len(group))) for group in self[1:]))


class Use(NamedTuple):
    """A use of a Linear in a step: which one, and which result of the step it reads."""

    number: int
    source: int


@dataclass(frozen=True)
class Step:
    """A compiled step.

    Attributes:
        forward: from what a step is given to its output, its state, what else its Linears read,
            and what is kept for `backward`.
        backward: from what was kept, and the gradients of output and state, to those of all given.
        example: what it was compiled for.
        uses: of Linears, in order.
    """

    forward: Kernel
    backward: Kernel
    example: Given
    uses: tuple[Use, ...]

    @property
    def batch_size(self) -> int:
        return len(self.example.inputs)


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
            with tell_of_compiling(SECONDS):
                self._steps[kind] = _compiled_or_none(chunk)
        return self._steps[kind]


def _compiled_or_none(chunk: Chunk) -> Step | None:
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # the compiler's own, that nobody here can act on
            return compile_step(chunk.cell, chunk.first)
    except Exception as error:  # a compiler raises many kinds, and the plain loop is always right
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"{type(chunk.cell).__name__}: not compiled, so slower; {reason}", file=sys.stderr)
        return None


def linears_of(cell: Cell) -> list[nn.Linear]:
    """The parts of a cell whose weights get their gradients after the loop."""
    return [part for part in cell.modules() if type(part) is nn.Linear]


def others_of(cell: Cell) -> dict[str, Tensor]:
    """All parameters and buffers of a cell that belong to no such part, by name."""
    of_linears = {id(weight) for linear in linears_of(cell) for weight in linear.parameters()}
    named = dict(cell.named_parameters()) | dict(cell.named_buffers())
    return {name: tensor for name, tensor in named.items() if id(tensor) not in of_linears}


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
                *((key, value) for key, value in vars(part).items() if _plain(value)),
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
            *(linear.weight for linear in linears),
            *(linear.bias for linear in linears),
            *others_of(self.cell).values(),
        )
        after = tuple(part[: self.batch_size] for part in state)
        return outputs_TBH.transpose(0, 1)[: self.batch_size], after


def _plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


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


def compile_step(cell: Cell, first: Given) -> Step:
    """Compile the step of a cell.

    Args:
        cell: in the mode that it is used in.
        first: what its first step is given, without addends.

    Raises:
        ValueError: what was compiled does not give what the cell gives.
        Exception: whatever else the compiler has against it.
    """
    linears = linears_of(cell)
    addends: list[Tensor] = []

    def output_of(use: int, number: int, inputs: Tensor) -> Tensor:
        output = F.linear(inputs, linears[number].weight, linears[number].bias)
        addends.append(torch.zeros_like(output))
        return output

    with torch.no_grad():
        _, uses = _pure_step(cell, first, output_of)
    example = first._replace(addends=addends)
    flat = [_leaf(tensor) for tensor in example.flat()]
    example = example.grouped(flat)
    for weight_OI in example.weights:
        weight_OI.requires_grad_(False)

    def step(*flat: Tensor) -> list[Tensor]:
        given = example.grouped(flat)

        def sum_of(use: int, number: int, inputs: Tensor) -> Tensor:
            addend, weight_OI = given.addends[use], given.weights[number]
            rows = torch.addmm(addend.flatten(0, -2), inputs.flatten(0, -2), weight_OI.t())
            return rows.view_as(addend)

        return _pure_step(cell, given, sum_of)[0]

    compiled = Step(*_kernels(step, flat), example, uses)
    _check(compiled, step, flat)
    return compiled


def _leaf(tensor: Tensor) -> Tensor:
    """A copy that can have a gradient, if it is one of numbers."""
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    return copy.requires_grad_(copy.is_floating_point())


def _pure_step(
    cell: Cell, given: Given, linear: Callable[[int, int, Tensor], Tensor]
) -> tuple[list[Tensor], tuple[Use, ...]]:
    """A step of a cell as a function of tensors.

    Args:
        cell: whose step.
        given: to it.
        linear: `linear(use, number, inputs)` is the output of a Linear, at its use of this number.

    Returns:
        The output, the state, and whatever else a Linear read, copied so that no two share their
        memory; and the uses of Linears.
    """
    read: dict[int, Tensor] = {}
    sources: list[tuple[int, int]] = []

    def use(number: int, inputs: Tensor) -> Tensor:
        read[id(inputs)] = inputs
        sources.append((number, id(inputs)))
        return linear(len(sources) - 1, number, inputs)

    pad_B, *resets = given.flags
    state = tuple(given.state)
    for reset_B in resets:
        state = where_row(reset_B, tuple(given.initial), state)
    named = dict(zip(others_of(cell), given.others, strict=True))
    with _linears_replaced(cell, use):
        arguments = given.inputs, state, list(given.masks) or None
        output_BH, after, _ = functional_call(cell, named, arguments)
    results = [output_BH.clone(), *where_row(pad_B, state, after)]
    places = {id(output_BH): 0}
    for key, tensor in read.items():
        if key not in places:
            places[key] = len(results)
            results.append(tensor.detach().clone())
    return results, tuple(Use(number, places[key]) for number, key in sources)


@contextmanager
def _linears_replaced(cell: Cell, use: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Within this context a call of a Linear is one of `use(its number, what it reads)`."""
    linears = linears_of(cell)
    try:
        for number, linear in enumerate(linears):
            linear.forward = partial(use, number)  # type: ignore[method-assign]
        yield
    finally:
        for linear in linears:
            vars(linear).pop("forward", None)


def _kernels(step: Callable[..., list[Tensor]], flat: list[Tensor]) -> tuple[Kernel, Kernel]:
    """What the compiler makes of a step and of its way back.

    To call torch's own compiled function would cost as much as the step itself. So its two halves
    are caught on their way into it, to be called as they are.
    """
    # Here, because they take seconds to import.
    from functorch.compile import aot_function, min_cut_rematerialization_partition
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table

    halves: list[Kernel] = []

    def compile_half(graph: Any, inputs: Sequence[Tensor], is_backward: bool) -> Kernel:
        for node in graph.graph.nodes:
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                raise ValueError(f"its step draws random numbers ({node.target})")
        halves.append(compile_fx_inner(graph, inputs, is_backward=is_backward))
        return halves[-1]

    outputs = aot_function(
        step,
        partial(compile_half, is_backward=False),
        partial(compile_half, is_backward=True),
        min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )(*flat)
    # The way back is compiled when it is first gone.
    learned = [output for output in outputs if output.requires_grad]
    torch.autograd.backward(learned, [torch.ones_like(output) for output in learned])
    forward, backward = halves
    return forward, backward


def _check(step: Step, source: Callable[..., list[Tensor]], flat: list[Tensor]) -> None:
    """Compare a compiled step with its source: values, and gradients of all that it is given.

    Raises:
        ValueError: they differ.
    """
    expected = source(*flat)
    results = step.forward([tensor.detach() for tensor in flat])
    learned = [result for result in expected if result.requires_grad]
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(result.shape, generator=generator).to(result) for result in learned]
    given = [tensor for tensor in flat if tensor.requires_grad]
    of_given = torch.autograd.grad(learned, given, grads, allow_unused=True, materialize_grads=True)
    found = [
        torch.zeros_like(tensor) if grad is None else grad
        for grad, tensor in zip(
            step.backward([*results[len(expected) :], *grads]), flat, strict=True
        )
        if tensor.requires_grad
    ]
    pairs = [*zip(results, expected, strict=False), *zip(found, of_given, strict=True)]
    for one, other in pairs:
        largest = float(other.detach().abs().amax()) if other.numel() else 0.0
        if not torch.allclose(one.to(other), other, rtol=0, atol=TOLERANCE * largest):
            raise ValueError("the compiler gives other numbers than the cell")
