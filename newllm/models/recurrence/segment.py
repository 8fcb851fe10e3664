"""A segment of steps of a cell whose memory stays, so that a CUDA graph can repeat it.

The weights of Linears are constants within it. Their gradients come from what the Linears read and
from the gradients of what they gave, in one product for all steps instead of one per step.

Shapes: B batch, K steps of a segment, E input, H output, N dropout masks of a step, M their width,
R rows of a product, I and O features of a Linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from newllm.models.cell import Cell
from newllm.models.layer import State, where_row
from newllm.models.recurrence.reference import Chunk, check_step
from newllm.models.recurrence.step import linears_of, linears_replaced

NUM_WARM_UPS = 3  # libraries choose their kernels in the first calls


class Gradients(NamedTuple):
    """What `Segment.backward` gives; None where nothing depends on a tensor."""

    inputs_KBE: Tensor
    state: list[Tensor | None]
    initial: list[Tensor | None]
    parameters: list[Tensor | None]  # in the order of `Constants.parameters`


class Constants:
    """The parameters of a cell, as all its segments read them.

    Args:
        cell: the cell.
        dtype: of the weights of Linears in autocast, which would else convert them at every step;
            None leaves them as they are.

    Attributes:
        parameters: of the cell: weights and biases of Linears, then all others.
    """

    def __init__(self, cell: Cell, dtype: torch.dtype | None) -> None:
        self.cell, self.dtype = cell, dtype
        self._of_linears = [
            parameter
            for linear in linears_of(cell)
            for parameter in (linear.weight, linear.bias)
            if parameter is not None
        ]
        known = {id(parameter) for parameter in self._of_linears}
        named = {n: value for n, value in cell.named_parameters() if id(value) not in known}
        self.parameters = [*self._of_linears, *named.values()]
        # These share the memory of the parameters.
        self.others = {name: value.detach().requires_grad_() for name, value in named.items()}
        self._own = {
            id(each): each.detach() if dtype is None else each.detach().to(dtype)
            for each in self._of_linears
        }

    def refresh(self) -> None:
        """Take over what the optimizer has changed."""
        if self.dtype is not None:
            for parameter in self._of_linears:
                self._own[id(parameter)].copy_(parameter.detach())

    def of(self, parameter: Tensor | None) -> Tensor | None:
        """What stands for a weight or bias of a Linear."""
        return None if parameter is None else self._own[id(parameter)]


class Segment:
    """A number of steps, forward and backward, that read and write the same memory each time.

    On a GPU, both directions are captured as CUDA graphs when it is made.

    Args:
        constants: parameters of the cell.
        like: a chunk with as many rows, flags and masks.
        num_steps: K.

    Attributes:
        forward: computes `outputs_KBH` and `after` from what was loaded.
        backward: computes `gradients` from the gradients that were loaded; once for each `forward`.
        num_uses: counts the calls that have taken it.
    """

    outputs_KBH: Tensor
    after: State
    gradients: Gradients

    def __init__(self, constants: Constants, like: Chunk, num_steps: int) -> None:
        self._constants, self._cell = constants, constants.cell
        self.num_steps, self.num_uses = num_steps, 0
        inputs_BTE = like.inputs_BTE
        batch_size, device = len(inputs_BTE), inputs_BTE.device
        shape = num_steps, batch_size
        self._inputs_KBE = _leaf(inputs_BTE.new_zeros((*shape, inputs_BTE.shape[-1])))
        self._state = tuple(_leaf(part.detach()) for part in like.state)
        self._pad_KB = torch.zeros(shape, dtype=torch.bool, device=device)
        self._reset_KB = None if like.reset_BT is None else torch.zeros_like(self._pad_KB)
        initial = () if like.reset_BT is None else self._cell.initial_state(batch_size)
        self._initial = tuple(_leaf(part.detach()) for part in initial)
        self._masks_NKBM = None
        if like.masks is not None:
            num_masks, mask_dim, _ = like.masks.step_shape
            size = (num_masks, *shape, mask_dim)
            self._masks_NKBM = torch.zeros(size, dtype=like.masks.dtype, device=device)
        self._grads: list[Tensor] = []  # of results that need one
        self._read: list[tuple[int, Tensor, Tensor]] = []  # number, input and output of Linears
        self.forward: Callable[[], None] = self._forward
        self.backward: Callable[[], None] = self._backward
        self._refuse_random_numbers(device)
        if device.type == "cuda":
            self._capture()

    def _refuse_random_numbers(self, device: torch.device) -> None:
        def states() -> list[Tensor]:
            own = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
            return [torch.get_rng_state(), *own]

        before = states()
        self._forward()
        if not all(map(torch.equal, before, states())):
            raise ValueError("its step draws random numbers")

    def _capture(self) -> None:
        """Record both directions, which must have run before, and not on the usual stream."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UPS):
                self._forward()
                self._backward()
        torch.cuda.current_stream().wait_stream(stream)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward):
            self._forward()
        with torch.cuda.graph(backward, pool=forward.pool()):
            self._backward()
        self.forward, self.backward = forward.replay, backward.replay

    @torch.no_grad()
    def load(
        self, chunk: Chunk, first: int, length: int, state: Sequence[Tensor], initial: State
    ) -> None:
        """Load steps of a chunk. Rows and steps beyond it hold old numbers, and count as padding.

        Args:
            chunk: whose steps are read; its `state` is not.
            first: step of it.
            length: number of its steps.
            state: before these steps.
            initial: state after a reset.
        """
        steps, batch_size = slice(first, first + length), len(chunk.inputs_BTE)
        self._inputs_KBE[:length, :batch_size].copy_(chunk.inputs_BTE[:, steps].transpose(0, 1))
        for own, part in zip((*self._state, *self._initial), (*state, *initial), strict=True):
            own[:batch_size].copy_(part[:batch_size])
        self._pad_KB.fill_(True)
        flags = [(self._pad_KB, chunk.pad_BT), (self._reset_KB, chunk.reset_BT)]
        for own_KB, flags_BT in flags:
            if flags_BT is not None and own_KB is not None:
                own_KB[:length, :batch_size].copy_(flags_BT[:, steps].t())
        if chunk.pad_BT is None:
            self._pad_KB[:length, :batch_size].fill_(False)
        if chunk.masks is not None and self._masks_NKBM is not None:
            masks_NKBM = chunk.masks.starting_at(first).block(length)
            self._masks_NKBM[:, :length, :batch_size].copy_(masks_NKBM)

    @torch.no_grad()
    def load_gradients(self, outputs_KBH: Tensor, after: Sequence[Tensor | None]) -> None:
        """Load the gradients of as many outputs as were loaded steps, and of the state after."""
        given = [outputs_KBH, *after]
        learned = (
            grad
            for grad, result in zip(given, self._results(), strict=True)
            if result.requires_grad
        )
        for own, grad in zip(self._grads, learned, strict=True):
            own.zero_()
            if grad is None:
                continue
            place = own[: grad.shape[0]]
            if grad is outputs_KBH:
                place = place[:, : grad.shape[1]]
            place.copy_(grad)

    def _results(self) -> list[Tensor]:
        return [self.outputs_KBH, *self.after]

    def _forward(self) -> None:
        self._read = []
        device, dtype = self._inputs_KBE.device.type, self._constants.dtype
        # Its cache would keep the weights of this call for all later ones.
        autocast = torch.autocast(device, dtype, dtype is not None, cache_enabled=False)
        with torch.enable_grad(), autocast, linears_replaced(self._cell, self._linear):
            self._take_steps()
        if not self._grads:
            learned = [result for result in self._results() if result.requires_grad]
            self._grads = [torch.zeros_like(result) for result in learned]

    def _take_steps(self) -> None:
        state, outputs = self._state, []
        for k, inputs_BE in enumerate(self._inputs_KBE.unbind()):
            if self._reset_KB is not None:
                state = where_row(self._reset_KB[k], self._initial, state)
            masks = None if self._masks_NKBM is None else self._masks_NKBM[:, k].unbind()
            arguments = inputs_BE, state, masks
            results = functional_call(self._cell, self._constants.others, arguments)
            if k == 0:
                check_step(self._cell, len(inputs_BE), results, state)
            output_BH, after, _ = results
            state = where_row(self._pad_KB[k], state, after)
            outputs.append(output_BH)
        self.outputs_KBH, self.after = torch.stack(outputs), state

    def _linear(self, number: int, inputs: Tensor) -> Tensor:
        """A Linear with constant weights, whose output is one to differentiate by."""
        linear = linears_of(self._cell)[number]
        weight, bias = self._constants.of(linear.weight), self._constants.of(linear.bias)
        assert weight is not None
        output = F.linear(inputs, weight, bias)
        if not output.requires_grad:
            output.requires_grad_()
        read = inputs.detach()
        self._read.append((number, read.to(weight.dtype), output))
        return output

    def _backward(self) -> None:
        results = [result for result in self._results() if result.requires_grad]
        others = list(self._constants.others.values())
        outputs = [output for _, _, output in self._read]
        groups = ([self._inputs_KBE], self._state, self._initial, others, outputs)
        wanted = [tensor for group in groups for tensor in group if tensor.requires_grad]
        grads = torch.autograd.grad(results, wanted, self._grads, allow_unused=True)
        found = iter(grads)
        of_inputs, of_state, of_initial, of_others, of_outputs = (
            [next(found) if tensor.requires_grad else None for tensor in group] for group in groups
        )
        of_linears = self._of_linears(of_outputs)
        inputs_KBE = of_inputs[0]
        if inputs_KBE is None:
            inputs_KBE = torch.zeros_like(self._inputs_KBE)
        self.gradients = Gradients(inputs_KBE, of_state, of_initial, [*of_linears, *of_others])

    def _of_linears(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients of weights and biases, each Linear's from all its calls at once."""
        gradients: list[Tensor | None] = []
        for number, linear in enumerate(linears_of(self._cell)):
            calls = [
                (read.flatten(0, -2), grad.flatten(0, -2))
                for (own, read, _), grad in zip(self._read, grads, strict=True)
                if own == number and grad is not None
            ]
            weight = bias = None
            if calls:
                read_RI, grad_RO = (torch.cat(parts) for parts in zip(*calls, strict=True))
                weight = (grad_RO.t() @ read_RI).to(linear.weight.dtype)
                bias = grad_RO.sum(0, dtype=linear.weight.dtype)
            gradients += [weight] if linear.bias is None else [weight, bias]
        return gradients


def _leaf(tensor: Tensor) -> Tensor:
    """Memory of its own, with a gradient if it is floating point."""
    own = tensor.clone(memory_format=torch.contiguous_format)
    return own.requires_grad_(own.is_floating_point())
