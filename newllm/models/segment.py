"""A segment of steps of the context cell as one autograd function, made of kernels.

Shapes: B batch, K steps of a segment, E embedding, C context, H hidden, N dropout masks of a step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from newllm.models.buffers import ALL, Buffers, Memory, Rows, split_steps
from newllm.models.cell import ContextCell
from newllm.models.fnn import PlainFNN, ResidualFNN
from newllm.models.gating import Additive, LSTMGating
from newllm.models.kernels import (
    AdditiveKernel,
    Dense,
    LayerNormKernel,
    LinearKernel,
    LSTMKernel,
    PlainKernel,
    ProjectionKernel,
    ReLUDropout,
    ResidualKernel,
)


def has_kernels(cell: ContextCell) -> bool:
    """Whether every part of the cell is of a kind that has a backward pass written by hand."""
    return (
        type(cell) is ContextCell
        and type(cell.fnn) in (PlainFNN, ResidualFNN)
        and type(cell.gating) in (Additive, LSTMGating)
        and type(cell.normalization) in (nn.Identity, nn.LayerNorm)
    )


class Weights:
    """The weights of a cell, laid out for its kernels; made once for all segments of a chunk."""

    def __init__(self, cell: ContextCell, memory: Memory) -> None:
        self.cell, self.memory = cell, memory
        self.parameters = list(cell.parameters())
        self.projection = Dense(cell.input)
        self.layers = [Dense(cast(nn.Linear, linear)) for linear in cell.fnn.layers]
        gating = cell.gating
        if isinstance(gating, LSTMGating):
            self.head = Dense(gating.delta, gating.forget_gate, gating.input_gate)
        else:
            assert isinstance(gating, Additive)
            self.head = Dense(gating.delta)


class Inputs(NamedTuple):
    """What a segment reads beside the context: arguments as of a `Recurrence`.

    `draw_masks` gives the dropout masks [N, K, B, H], every time the same.
    """

    embedded_BKE: Tensor
    pad_BK: Tensor | None
    reset_BK: Tensor | None
    draw_masks: Callable[[], Tensor] | None


class Segment:
    """The kernels of one segment, wired up as `ContextCell.forward` is.

    `contexts` holds the context before each step, after a reset; `forward` fills it.
    """

    def __init__(self, weights: Weights, inputs: Inputs, contexts: Rows) -> None:
        cell = weights.cell
        batch_size, num_steps, _ = inputs.embedded_BKE.shape
        buffers = Buffers(weights.memory, num_steps, batch_size, contexts[ALL])
        self.contexts = contexts
        self.pad, self.reset = _flags_by_step(inputs.pad_BK), _flags_by_step(inputs.reset_BK)
        self.projection = ProjectionKernel(
            buffers, weights.projection, _by_step(inputs.embedded_BKE), contexts
        )
        self.fnn = self._fnn(buffers, weights, inputs.draw_masks)
        self.head = LinearKernel(buffers, weights.head, self.fnn.outputs)
        gating_kernel = LSTMKernel if isinstance(cell.gating, LSTMGating) else AdditiveKernel
        self.gating = gating_kernel(buffers, self.head, contexts)
        self.norm, self.unclipped = None, self.gating.outputs
        if isinstance(cell.normalization, nn.LayerNorm):
            self.norm = LayerNormKernel(buffers, cell.normalization, self.gating.outputs)
            self.unclipped = self.norm.outputs
        self.clip = cell.context_clip
        in_place = self.clip is None and self.pad is None
        self.outputs = self.unclipped if in_place else buffers.rows(cell.context_dim)

    def _fnn(
        self, buffers: Buffers, weights: Weights, draw_masks: Callable[[], Tensor] | None
    ) -> PlainKernel | ResidualKernel:
        cell, masks = weights.cell, None
        if draw_masks is not None:
            masks = [
                split_steps(mask_KBH.flatten(0, 1), len(self.contexts[0]))
                for mask_KBH in draw_masks()
            ]
        activation = ReLUDropout(masks, cell.dropout)
        if isinstance(cell.fnn, PlainFNN):
            return PlainKernel(buffers, weights.layers, self.projection, activation)
        norms = [cast(nn.LayerNorm, norm) for norm in cell.fnn.norms]
        return ResidualKernel(
            buffers, weights.layers, norms, cell.fnn.final_norm, self.projection, activation
        )

    def forward(self, context_BC: Tensor) -> None:
        """Take all steps in order."""
        for t in range(len(self.contexts) - 1):
            before_BC = self.contexts[t].copy_(context_BC)
            if self.reset is not None:
                before_BC.masked_fill_(self.reset[t], 0)
            context_BC = self.step(t)

    def step(self, t: int) -> Tensor:
        """Take a step from its context; or ALL at once, if all contexts are there."""
        self.projection.forward(t)
        self.fnn.forward(t)
        context_BC = self.gating.forward(t)
        if self.norm is not None:
            context_BC = self.norm.forward(t)
        if self.clip is not None:
            context_BC = torch.clamp(context_BC, -self.clip, self.clip, out=self.outputs[t])
        if self.pad is not None:
            torch.where(self.pad[t], self.contexts[t], context_BC, out=self.outputs[t])
        return self.outputs[t]

    def backward(self, hidden_grads: Rows, context_grads: Rows | None) -> Tensor:
        """Take all steps back; return the gradient of the context before the first.

        Args:
            hidden_grads: with respect to the hidden vectors.
            context_grads: with respect to the contexts after each step; None means zero.
        """
        grad_BC = torch.zeros_like(self.contexts[0])
        for t in reversed(range(len(self.contexts) - 1)):
            if context_grads is not None:
                grad_BC = grad_BC + context_grads[t]
            grad_BC = self._step_back(t, grad_BC, hidden_grads[t])
        return grad_BC

    def _step_back(self, t: int, grad_BC: Tensor, hidden_grad_BH: Tensor) -> Tensor:
        after_grad_BC = grad_BC
        if self.pad is not None:
            grad_BC = grad_BC.masked_fill(self.pad[t], 0)
        if self.clip is not None:
            grad_BC = grad_BC.masked_fill(self.unclipped[t].abs() > self.clip, 0)
        if self.norm is not None:
            self.norm.grads[t].copy_(grad_BC)
            grad_BC = self.norm.backward(t)
        grad_BC = self.gating.backward(t, grad_BC)
        self.fnn.backward(t, self.head.backward(t).add_(hidden_grad_BH))
        grad_BC = self.projection.backward(t, grad_BC)
        if self.pad is not None:
            grad_BC.add_(after_grad_BC.masked_fill(~self.pad[t], 0))
        return grad_BC if self.reset is None else grad_BC.masked_fill_(self.reset[t], 0)

    def gradients(self) -> dict[Tensor, Tensor]:
        """The gradient of each parameter, after `backward`."""
        parts = [self.projection, *self.fnn.parts, self.head, *([self.norm] if self.norm else [])]
        return {parameter: grad for part in parts for parameter, grad in part.gradients()}


class ReadSegment(torch.autograd.Function):
    """Read a segment: hidden vectors [B, K, H] and contexts [B, K, C] from (embedded, context)."""

    @staticmethod
    def forward(
        ctx: Any,
        weights: Weights,
        recompute: bool,
        inputs: Inputs,
        embedded_BKE: Tensor,
        context_BC: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        batch_size, num_steps, _ = embedded_BKE.shape
        contexts = split_steps(
            context_BC.new_empty(num_steps * batch_size, context_BC.shape[1]), batch_size
        )
        segment = Segment(weights, inputs, contexts)
        segment.forward(context_BC)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*parameters)
        ctx.weights, ctx.inputs, ctx.contexts = weights, inputs, contexts
        ctx.segment = None if recompute else segment
        return (
            _batch_first(segment.fnn.outputs[ALL], batch_size),
            _batch_first(segment.outputs[ALL], batch_size),
        )

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, hidden_grad_BKH: Tensor | None, contexts_grad_BKC: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        parameters = ctx.saved_tensors  # raises if a weight was changed since
        segment = ctx.segment
        if segment is None:
            segment = Segment(ctx.weights, ctx.inputs, ctx.contexts)
            segment.step(ALL)
        hidden_grads = (
            [torch.zeros_like(rows) for rows in segment.fnn.outputs]
            if hidden_grad_BKH is None
            else _by_step(hidden_grad_BKH)
        )
        context_grads = None if contexts_grad_BKC is None else _by_step(contexts_grad_BKC)
        context_grad_BC = segment.backward(hidden_grads, context_grads)
        embedded_grad = _batch_first(segment.projection.embedded_grad(), len(context_grad_BC))
        grads = segment.gradients()
        own = (grads[parameter] for parameter in ctx.weights.parameters)
        assert len(parameters) == len(ctx.weights.parameters)
        return None, None, None, embedded_grad, context_grad_BC, *own


def read_segment(
    weights: Weights, recompute: bool, inputs: Inputs, context_BC: Tensor
) -> tuple[Tensor, Tensor]:
    """Give the hidden vectors [B, K, H] and the contexts [B, K, C] of a segment.

    Args:
        weights: of the cell.
        recompute: keep only the contexts, and compute the rest again in the backward pass.
        inputs: what to read.
        context_BC: the context before the first step.
    """
    hidden_BKH, contexts_BKC = ReadSegment.apply(
        weights,
        recompute,
        inputs._replace(embedded_BKE=inputs.embedded_BKE.detach()),
        inputs.embedded_BKE,
        context_BC,
        *weights.parameters,
    )
    return hidden_BKH, contexts_BKC


def _by_step(tensor_BKN: Tensor) -> Rows:
    return split_steps(tensor_BKN.transpose(0, 1).flatten(0, 1), len(tensor_BKN))


def _flags_by_step(flags_BK: Tensor | None) -> Rows | None:
    return None if flags_BK is None else _by_step(flags_BK[:, :, None])


def _batch_first(tensor: Tensor, batch_size: int) -> Tensor:
    """A copy as [B, K, N], since the buffers are used again."""
    tensor_BKN = tensor.unflatten(0, (-1, batch_size)).transpose(0, 1)
    return tensor_BKN.clone(memory_format=torch.contiguous_format)
