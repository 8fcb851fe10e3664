"""A chunk of steps, read by the kernels. Names of shapes as in the package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from newllm.models.cell import ContextCell
from newllm.models.layer import State
from newllm.models.recurrence.all_steps import AllSteps
from newllm.models.recurrence.kernel.backward import backward
from newllm.models.recurrence.kernel.forward import forward
from newllm.models.recurrence.kernel.parts import PAD, RESET
from newllm.models.recurrence.kernel.weights import ROWS, Weights
from newllm.models.recurrence.reference import Chunk


def read_chunk(cell: ContextCell, chunk: Chunk, dtype: torch.dtype) -> tuple[Tensor, State]:
    """Outputs and state, as a `Recurrence` gives them; products are of type `dtype`."""
    keeps = torch.is_grad_enabled()  # never within `_Read.forward`
    y_BTH, context_BC = _Read.apply(
        cell, chunk, dtype, keeps, chunk.inputs_BTE, *chunk.state, *cell.parameters()
    )
    return y_BTH, (context_BC,)


class _Read(torch.autograd.Function):
    """Outputs [B, T, H] and the last context, from inputs, a context and all parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: ContextCell,
        chunk: Chunk,
        dtype: torch.dtype,
        keeps: bool,
        inputs_BTE: Tensor,
        context_BC: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        run = Run(Weights(cell, dtype), chunk, keeps and any(ctx.needs_input_grad))
        ctx.cell, ctx.dtype, ctx.run = cell, dtype, run
        ctx.save_for_backward(inputs_BTE, context_BC, *parameters)
        after_BC = run.contexts_TBC[-1].to(context_BC, copy=True)
        return run.outputs_TBH.transpose(0, 1).contiguous(), after_BC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs_grad_BTH: Tensor, after_grad_BC: Tensor) -> tuple[Any, ...]:
        """The kernel gives the gradients of contexts; from these, all others follow at once."""
        given = [
            tensor.detach().requires_grad_(is_wanted)
            for tensor, is_wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[4:], strict=True)
        ]
        inputs_BTE, context_BC, *parameters = given
        outputs_grad_TBH = outputs_grad_BTH.transpose(0, 1).contiguous()
        grads_TBC = ctx.run.backward(outputs_grad_TBH, after_grad_BC.contiguous())
        names = [name for name, _ in ctx.cell.named_parameters()]
        named = dict(zip(names, parameters, strict=True))
        chunk = ctx.run.chunk._replace(inputs_BTE=inputs_BTE, state=(context_BC,))
        before = (ctx.run.contexts_TBC[:-1].to(context_BC),)
        autocast_dtype = None if ctx.dtype == parameters[0].dtype else ctx.dtype
        with (
            torch.enable_grad(),
            torch.autocast(inputs_BTE.device.type, autocast_dtype, autocast_dtype is not None),
        ):
            outputs_TBH, (contexts_TBC,) = AllSteps(ctx.cell, chunk, named).take(before)
        pairs = ((outputs_TBH, outputs_grad_TBH), (contexts_TBC, grads_TBC))
        learned = [(result, grad.to(result)) for result, grad in pairs if result.requires_grad]
        wanted = [tensor for tensor in given if tensor.requires_grad]
        results, grads = zip(*learned, strict=True)
        found = iter(torch.autograd.grad(results, wanted, grads, allow_unused=True))
        own = (next(found) if one.requires_grad else None for one in given)
        return None, None, None, None, *own


class Run:
    """A run of the kernels over a chunk.

    Args:
        weights: of the cell.
        chunk: the chunk.
        keeps: whether to keep what `backward` needs.

    Attributes:
        chunk: the chunk, with flags of its own: the caller may change those that it gave.
        outputs_TBH: of all steps.
        contexts_TBC: after all steps, in float32.
    """

    def __init__(self, weights: Weights, chunk: Chunk, keeps: bool) -> None:
        pad_BT, reset_BT = (
            None if flags is None else flags.clone() for flags in (chunk.pad_BT, chunk.reset_BT)
        )
        self.chunk = chunk._replace(pad_BT=pad_BT, reset_BT=reset_BT, found=None)
        self._weights = weights
        inputs_BTE, self._context_BC = chunk.inputs_BTE.detach(), chunk.state[0].contiguous()
        self._flags_TB = self._flags()
        B, T, _ = inputs_BTE.shape
        H, C = weights.hidden_dim, weights.context_dim
        self._sizes = (T, B, C, weights.head_dim, H, *weights.numbers)
        projected_TBH = weights.projected(inputs_BTE)
        self.outputs_TBH = inputs_BTE.new_empty(T, B, H, dtype=self._context_BC.dtype)
        self.contexts_TBC = inputs_BTE.new_empty(T, B, C, dtype=torch.float32)
        num_layers, num_gates = len(weights.layers_DHH) + 1, len(weights.gates_GCH)
        self._hiddens_LTBH = projected_TBH.new_empty(num_layers if keeps else 0, T, B, H)
        self._parts_GTBC = projected_TBH.new_empty(num_gates if keeps else 0, T, B, C)
        with torch.cuda.device_of(inputs_BTE):
            forward[self._grid](
                projected_TBH, self._context_BC, self._flags_TB, self._masks(),
                weights.input_HC, weights.layers_DHH, weights.biases_DH,
                weights.scales_LH, weights.shifts_LH,
                weights.gates_GCH, weights.carries_GNKK, weights.gate_biases_GC,
                weights.scales_NK, weights.shifts_NK,
                self.outputs_TBH, self.contexts_TBC, self._hiddens_LTBH, self._parts_GTBC,
                *self._sizes, **weights.settings, DROPS=self._drops, KEEPS=keeps,
            )  # fmt: skip

    def backward(self, outputs_grad_TBH: Tensor, after_grad_BC: Tensor) -> Tensor:
        """The gradients of the contexts after all steps [T, B, C], with those of later steps."""
        weights, grads_TBC = self._weights, torch.empty_like(self.contexts_TBC)
        with torch.cuda.device_of(grads_TBC):
            backward[self._grid](
                outputs_grad_TBH, after_grad_BC, self._context_BC, self.contexts_TBC,
                self._hiddens_LTBH, self._parts_GTBC, self._flags_TB, self._masks(),
                weights.input_HC, weights.layers_DHH, weights.scales_LH, weights.shifts_LH,
                weights.gates_GCH, weights.carries_GNKK, weights.scales_NK, weights.shifts_NK,
                grads_TBC,
                *self._sizes, **weights.settings, DROPS=self._drops,
            )  # fmt: skip
        return grads_TBC

    @property
    def _grid(self) -> tuple[int]:
        return (-(-len(self._context_BC) // ROWS),)

    @property
    def _drops(self) -> bool:
        return self.chunk.masks is not None and self.chunk.masks.step_shape[0] > 0

    def _masks(self) -> Tensor:
        """The dropout masks [N, T, B, H], drawn again each time; nothing if nothing is dropped."""
        if self.chunk.masks is None:
            return self._context_BC.new_empty(0)
        return self.chunk.masks.all(self.chunk.inputs_BTE.shape[1])

    def _flags(self) -> Tensor:
        """The bits PAD and RESET of each token [T, B]."""
        chunk = self.chunk
        flags_TB = torch.zeros(
            chunk.inputs_BTE.shape[:2], dtype=torch.int8, device=chunk.inputs_BTE.device
        ).t().contiguous()  # fmt: skip
        for bit, flags_BT in ((PAD, chunk.pad_BT), (RESET, chunk.reset_BT)):
            if flags_BT is not None:
                flags_TB += bit.value * flags_BT.t()
        return flags_TB
