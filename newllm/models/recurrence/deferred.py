"""Faster Linear modules for any loop over time, without a line of backward for the loop itself.

Shapes: R rows (a batch), I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@contextmanager
def deferred_gradients(module: nn.Module) -> Iterator[None]:
    """Within this context, each Linear of a module gets its gradients in one product for all uses.

    Each use notes its input and, in the backward pass, the gradient of its output; after the last
    one the gradients are made from all notes at once. The weight is transposed once for all uses,
    because a few rows are multiplied faster by a matrix in that order.
    """
    linears = [part for part in module.modules() if type(part) is nn.Linear]
    try:
        for linear in linears:
            linear.forward = _Shared(linear.weight, linear.bias).use  # type: ignore[method-assign]
        yield
    finally:
        for linear in linears:
            del linear.forward


class _Shared:
    """What all uses of one Linear share."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        device = weight.device.type
        self.dtype = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        )
        self.weight_OI = weight.detach().to(self.dtype)
        self.bias_O = None if bias is None else bias.detach().to(self.dtype)
        self.transposed_IO = self.weight_OI.t().contiguous()
        self.notes: list[tuple[Tensor, Tensor]] = []
        # Its backward runs when those of all uses have run, for they all depend on it.
        self.token: Tensor = _Parameters.apply(weight, bias, self.notes)

    def use(self, input: Tensor) -> Tensor:
        output: Tensor = _Linear.apply(input.to(self.dtype), self.token, self)
        return output


class _Parameters(torch.autograd.Function):
    """An empty token for the parameters; backward turns the notes into their gradients."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, notes: list[Any]) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.notes = notes
        ctx.dtype = weight.dtype
        return weight.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, token_grad: None) -> tuple[Tensor | None, Tensor | None, None]:
        if not ctx.notes:
            return None, None, None
        inputs, grads = zip(*ctx.notes, strict=True)
        ctx.notes.clear()
        input_RI, grad_RO = torch.cat(inputs), torch.cat(grads)
        weight_grad = (grad_RO.t() @ input_RI).to(ctx.dtype)
        bias_grad = grad_RO.sum(0).to(ctx.dtype) if ctx.needs_input_grad[1] else None
        return weight_grad, bias_grad, None


class _Linear(torch.autograd.Function):
    """One use: the gradient of the input at once, that of the parameters as a note."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, token: Tensor, shared: _Shared) -> Tensor:
        ctx.save_for_backward(input, shared.weight_OI)
        ctx.notes = shared.notes
        input_RI = input.flatten(0, -2)
        output_RO = (
            input_RI @ shared.transposed_IO
            if shared.bias_O is None
            else torch.addmm(shared.bias_O, input_RI, shared.transposed_IO)
        )
        return output_RO.unflatten(0, input.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        input, weight_OI = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            if not ctx.notes:  # Whoever asks for other gradients only must leave no notes behind.
                torch.autograd.Variable._execution_engine.queue_callback(ctx.notes.clear)
            ctx.notes.append((input.flatten(0, -2), grad.flatten(0, -2)))
        return (grad @ weight_OI if ctx.needs_input_grad[0] else None), None, None
