"""One step of a cell, compiled: forward and backward, as functions of tensors.

In the compiled step the weight of a Linear is a constant, and an addend of that step replaces its
bias. The gradient of the addend is that of the Linear's output. Together with the Linear's input it
gives the gradient of the weight, in one product for all steps instead of one per step.

Shapes: B batch, I and O features of a Linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from newllm.models.cell import Cell
from newllm.models.layer import where_row

TOLERANCE = 1e-3  # of a compiled step, relative to the largest value
Kernel = Callable[[list[Tensor]], Sequence[Any]]


class StepArguments(NamedTuple):
    """Arguments of a step; the first four are new at each token."""

    inputs: Tensor
    state: Sequence[Tensor]
    masks: Sequence[Tensor]
    flags: Sequence[Tensor]  # bool [B]: padding; resets, where there are any
    initial: Sequence[Tensor]  # state after a reset; empty without resets
    addends: Sequence[Tensor]  # [B, O], one for each use of a Linear
    weights: Sequence[Tensor]  # of the Linears, [O, I]
    others: Sequence[Tensor]  # all other parameters and buffers

    def flat(self) -> list[Tensor]:
        """All tensors in order."""
        return [self.inputs, *(tensor for group in self[1:] for tensor in group)]

    def grouped(self, flat: Iterable[Any]) -> StepArguments:
        """Items in the order of `flat`, in groups of the same sizes."""
        items = iter(flat)
        return StepArguments(next(items), *(list(islice(items, len(group))) for group in self[1:]))


class Use(NamedTuple):
    """A call of a Linear in a step: its number, and the index of its input in the results."""

    number: int
    source: int


@dataclass(frozen=True)
class Step:
    """A compiled step.

    Attributes:
        forward: maps `StepArguments.flat()` to the output, the state, other inputs of Linears, and
            what `backward` needs.
        backward: maps what it needs and the gradients of output and state to those of the
            arguments.
        example: arguments that it was compiled for.
        uses: calls of Linears, in order.
    """

    forward: Kernel
    backward: Kernel
    example: StepArguments
    uses: tuple[Use, ...]

    @property
    def batch_size(self) -> int:
        return len(self.example.inputs)


def linears_of(cell: Cell) -> list[nn.Linear]:
    """The Linears of a cell, whose weights get their gradients after the loop."""
    return [part for part in cell.modules() if type(part) is nn.Linear]


def others_of(cell: Cell) -> dict[str, Tensor]:
    """Parameters and buffers that belong to no Linear, by name."""
    of_linears = {id(weight) for linear in linears_of(cell) for weight in linear.parameters()}
    named = dict(cell.named_parameters()) | dict(cell.named_buffers())
    return {name: tensor for name, tensor in named.items() if id(tensor) not in of_linears}


def compile_step(cell: Cell, first: StepArguments) -> Step:
    """Compile the step of a cell.

    Args:
        cell: the cell, in training or evaluation mode.
        first: arguments of its first step, without addends.

    Raises:
        ValueError: the compiled step gives other values than the cell, or the cell draws random
            numbers.
        Exception: the compiler fails.
    """
    linears = linears_of(cell)
    addends: list[Tensor] = []

    def output_of(use: int, number: int, inputs: Tensor) -> Tensor:
        output = F.linear(inputs, linears[number].weight, linears[number].bias)
        addends.append(torch.zeros_like(output))
        return output

    # Copies, since a cell may change its buffers.
    first = first._replace(others=[tensor.detach().clone() for tensor in first.others])
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
    """A contiguous copy, with a gradient if it is floating point."""
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    return copy.requires_grad_(copy.is_floating_point())


def _pure_step(
    cell: Cell, given: StepArguments, linear: Callable[[int, int, Tensor], Tensor]
) -> tuple[list[Tensor], tuple[Use, ...]]:
    """A step of a cell as a function of tensors.

    `linear(use, number, inputs)` computes the output of Linear `number` in the call `use`.

    Returns:
        The output, the state, and other inputs of Linears, none sharing memory; the uses of
        Linears.
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
    with linears_replaced(cell, use):
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
def linears_replaced(cell: Cell, use: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Within this context a call of a Linear is `use(number, inputs)`."""
    linears = linears_of(cell)
    try:
        for number, linear in enumerate(linears):
            linear.forward = partial(use, number)  # type: ignore[method-assign]
        yield
    finally:
        for linear in linears:
            vars(linear).pop("forward", None)


def _kernels(step: Callable[..., list[Tensor]], flat: list[Tensor]) -> tuple[Kernel, Kernel]:
    """The compiled step and its backward pass.

    Calling torch's compiled function costs as much as the step itself, so its two halves are
    collected to be called directly.
    """
    # Here, because these take seconds to import.
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
    # The backward pass is compiled when it first runs.
    learned = [output for output in outputs if output.requires_grad]
    torch.autograd.backward(learned, [torch.ones_like(output) for output in learned])
    forward, backward = halves
    return forward, backward


def _check(step: Step, source: Callable[..., list[Tensor]], flat: list[Tensor]) -> None:
    """Compare the values and all gradients of a compiled step with those of its source."""
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
            raise ValueError("the compiled step gives other values than the cell")
