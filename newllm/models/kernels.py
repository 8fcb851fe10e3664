"""The parts of the context cell with their backward passes written by hand, for `fused`.

A kernel is one module of the cell over a segment of K steps. It goes forward and backward by step,
through buffers that hold all steps, so that a loop over time allocates next to nothing. What is a
sum over time, the gradients of the parameters, waits until the loop is over and is then one large
product instead of K small ones.

Buffers are `Rows`: `rows[t]` holds step t as [B, N], `rows[ALL]` all steps as [K * B, N]. So
`forward(t)` takes one step, and `forward(ALL)` all of them at once where every context is known.
`grads[t]` holds the gradient of the loss with respect to `outputs[t]`, written by whoever read it.

Shapes: B batch, K steps of a segment, E embedding, C context, H hidden, N any width.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from newllm.models.buffers import ALL, Buffers, Rows

Gradients = Iterator[tuple[Tensor, Tensor]]  # a parameter, and its gradient

LARGE = 2**20  # elements; from here on a matrix waits for its memory, in whatever order it lies
PADDING = 16

aten = torch.ops.aten


class Dense:
    """Linear modules that read the same input, side by side as one; shared by all segments.

    The transposed copy is what makes a step fast: BLAS multiplies a few rows by a matrix that lies
    in the order it reads two to four times as fast as by the transpose of one.
    """

    def __init__(self, *linears: nn.Linear) -> None:
        self.parameters = [(linear.weight, linear.bias) for linear in linears]
        weights, biases = zip(*self.parameters, strict=True)
        self.weight = (weights[0] if len(linears) == 1 else torch.cat(weights)).detach()
        self.bias = (biases[0] if len(linears) == 1 else torch.cat(biases)).detach()
        self.transposed = self.weight.t()
        if self.weight.numel() < LARGE:
            # Rows a power of two apart share a few lines of the cache: the odd length keeps them
            # apart, which makes the copy itself nearly twice as fast.
            rows = self.weight.new_empty(self.weight.shape[1], self.weight.shape[0] + PADDING)
            self.transposed = rows[:, :-PADDING].copy_(self.transposed)

    def gradients(self, inputs: Tensor, grads: Tensor) -> Gradients:
        sizes = [len(bias) for _, bias in self.parameters]
        weight_grads = (grads.t() @ inputs).split(sizes)
        bias_grads = grads.sum(0).split(sizes)
        for parameters, *parts in zip(self.parameters, weight_grads, bias_grads, strict=True):
            yield from zip(parameters, parts, strict=True)


class LinearKernel:
    """One or more Linear modules of the same input."""

    def __init__(self, buffers: Buffers, dense: Dense, inputs: Rows) -> None:
        self.buffers, self.dense, self.inputs = buffers, dense, inputs
        self.outputs = buffers.rows(len(dense.bias))

    @cached_property
    def grads(self) -> Rows:
        return self.buffers.rows(self.outputs[ALL].shape[1])

    def forward(self, t: int) -> Tensor:
        dense = self.dense
        return torch.addmm(dense.bias, self.inputs[t], dense.transposed, out=self.outputs[t])

    def backward(self, t: int) -> Tensor:
        return self.grads[t] @ self.dense.weight

    def gradients(self) -> Gradients:
        return self.dense.gradients(self.inputs[ALL], self.grads[ALL])


class ProjectionKernel:
    """The cell's input Linear; the half that reads embeddings needs no loop over time."""

    def __init__(self, buffers: Buffers, dense: Dense, embedded: Rows, contexts: Rows) -> None:
        self.buffers, self.dense, self.embedded, self.contexts = buffers, dense, embedded, contexts
        width = embedded[ALL].shape[1]
        self.embedding_weight, self.context_weight = (
            dense.weight[:, :width],
            dense.weight[:, width:],
        )
        self.context_transposed = dense.transposed[width:]
        self.outputs = buffers.rows(len(dense.bias))
        torch.addmm(dense.bias, embedded[ALL], dense.transposed[:width], out=self.outputs[ALL])

    @cached_property
    def grads(self) -> Rows:
        return self.buffers.rows(self.outputs[ALL].shape[1])

    def forward(self, t: int) -> Tensor:
        return self.outputs[t].addmm_(self.contexts[t], self.context_transposed)

    def backward(self, t: int, context_grad_BC: Tensor) -> Tensor:
        return torch.addmm(context_grad_BC, self.grads[t], self.context_weight)

    def embedded_grad(self) -> Tensor:
        return self.grads[ALL] @ self.embedding_weight

    def gradients(self) -> Gradients:
        inputs = torch.cat((self.embedded[ALL], self.contexts[ALL]), dim=1)
        return self.dense.gradients(inputs, self.grads[ALL])


class LayerNormKernel:
    """LayerNorm, with an affine map or without."""

    def __init__(self, buffers: Buffers, norm: nn.LayerNorm, inputs: Rows) -> None:
        self.buffers, self.inputs = buffers, inputs
        self.weight, self.bias = norm.weight, norm.bias
        self.shape, self.eps = norm.normalized_shape, norm.eps
        self.outputs = buffers.rows(inputs[ALL].shape[1])
        self.means, self.inverse_stds = buffers.rows(1), buffers.rows(1)

    @cached_property
    def grads(self) -> Rows:
        return self.buffers.rows(self.outputs[ALL].shape[1])

    def forward(self, t: int) -> Tensor:
        output: Tensor = aten.native_layer_norm.out(
            self.inputs[t],
            self.shape,
            self.weight,
            self.bias,
            self.eps,
            out0=self.outputs[t],
            out1=self.means[t],
            out2=self.inverse_stds[t],
        )[0]
        return output

    def backward(self, t: int) -> Tensor:
        return self._backward(t, [True, False, False])[0]

    def gradients(self) -> Gradients:
        wanted = [False, self.weight is not None, self.bias is not None]
        _, weight_grad, bias_grad = self._backward(ALL, wanted)
        if self.weight is not None:
            yield self.weight, weight_grad
        if self.bias is not None:
            yield self.bias, bias_grad

    def _backward(self, t: int, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        grads: tuple[Tensor, Tensor, Tensor] = aten.native_layer_norm_backward(
            self.grads[t],
            self.inputs[t],
            self.shape,
            self.means[t],
            self.inverse_stds[t],
            self.weight,
            self.bias,
            wanted,
        )
        return grads


class ReLUDropout:
    """ReLU, then dropout, in place; the output alone tells the backward pass what was dropped."""

    def __init__(self, masks: Sequence[Rows] | None, dropout: float) -> None:
        self.masks = masks
        self.scale = 1 / (1 - dropout)

    def forward(self, t: int, depth: int, hidden_BH: Tensor) -> Tensor:
        torch.relu_(hidden_BH)
        return hidden_BH if self.masks is None else hidden_BH.mul_(self.masks[depth][t])

    def backward(self, grad_BH: Tensor, hidden_BH: Tensor, out: Tensor) -> None:
        aten.threshold_backward.grad_input(grad_BH, hidden_BH, 0, grad_input=out)
        if self.masks is not None:
            out.mul_(self.scale)


class PlainKernel:
    """PlainFNN."""

    def __init__(
        self,
        buffers: Buffers,
        layers: Sequence[Dense],
        source: ProjectionKernel,
        activation: ReLUDropout,
    ) -> None:
        self.source, self.activation = source, activation
        self.parts: list[LinearKernel] = []
        self.outputs = source.outputs
        for dense in layers:
            self.parts.append(LinearKernel(buffers, dense, self.outputs))
            self.outputs = self.parts[-1].outputs

    def forward(self, t: int) -> Tensor:
        hidden_BH = self.activation.forward(t, 0, self.source.outputs[t])
        for depth, layer in enumerate(self.parts, start=1):
            hidden_BH = self.activation.forward(t, depth, layer.forward(t))
        return hidden_BH

    def backward(self, t: int, grad_BH: Tensor) -> None:
        for layer in reversed(self.parts):
            self.activation.backward(grad_BH, layer.outputs[t], out=layer.grads[t])
            grad_BH = layer.backward(t)
        self.activation.backward(grad_BH, self.source.outputs[t], out=self.source.grads[t])


class ResidualKernel:
    """ResidualFNN."""

    def __init__(
        self,
        buffers: Buffers,
        layers: Sequence[Dense],
        norms: Sequence[nn.LayerNorm],
        final_norm: nn.LayerNorm,
        source: ProjectionKernel,
        activation: ReLUDropout,
    ) -> None:
        self.source, self.activation = source, activation
        self.blocks: list[tuple[LayerNormKernel, LinearKernel]] = []
        hidden = source.outputs
        for norm, dense in zip(norms, layers, strict=True):
            normed = LayerNormKernel(buffers, norm, hidden)
            self.blocks.append((normed, LinearKernel(buffers, dense, normed.outputs)))
            hidden = self.blocks[-1][1].outputs
        self.final_norm = LayerNormKernel(buffers, final_norm, hidden)
        self.outputs = self.final_norm.outputs
        self.parts = [*(part for block in self.blocks for part in block), self.final_norm]

    def forward(self, t: int) -> Tensor:
        hidden_BH = self.source.outputs[t]
        for depth, (norm, linear) in enumerate(self.blocks):
            self.activation.forward(t, depth, norm.forward(t))
            hidden_BH = linear.forward(t).add_(hidden_BH)
        return self.final_norm.forward(t)

    def backward(self, t: int, grad_BH: Tensor) -> None:
        self.final_norm.grads[t].copy_(grad_BH)
        grad_BH = self.final_norm.backward(t)
        for norm, linear in reversed(self.blocks):
            linear.grads[t].copy_(grad_BH)
            self.activation.backward(linear.backward(t), norm.outputs[t], out=norm.grads[t])
            grad_BH = norm.backward(t).add_(grad_BH)
        self.source.grads[t].copy_(grad_BH)


class AdditiveKernel:
    """Additive gating: its head is delta."""

    def __init__(self, buffers: Buffers, head: LinearKernel, contexts: Rows) -> None:
        self.head, self.contexts = head, contexts
        self.outputs = buffers.rows(contexts[ALL].shape[1])

    def forward(self, t: int) -> Tensor:
        return torch.add(self.contexts[t], self.head.forward(t), out=self.outputs[t])

    def backward(self, t: int, grad_BC: Tensor) -> Tensor:
        """Fill the head's gradient; return that of the context before the step."""
        self.head.grads[t].copy_(grad_BC)
        return grad_BC


class LSTMKernel:
    """LSTMGating: its head is delta, then the two gates before their sigmoids."""

    def __init__(self, buffers: Buffers, head: LinearKernel, contexts: Rows) -> None:
        self.head, self.contexts = head, contexts
        self.outputs = buffers.rows(contexts[ALL].shape[1])
        self.context_dim = contexts[ALL].shape[1]

    def forward(self, t: int) -> Tensor:
        head_B3C = self.head.forward(t)
        torch.sigmoid_(head_B3C[:, self.context_dim :])
        delta_BC, forget_BC, input_BC = head_B3C.chunk(3, dim=1)
        torch.mul(input_BC, delta_BC, out=self.outputs[t])
        return self.outputs[t].addcmul_(forget_BC, self.contexts[t])

    def backward(self, t: int, grad_BC: Tensor) -> Tensor:
        """Fill the head's gradient; return that of the context before the step."""
        head_B3C, grad_B3C = self.head.outputs[t], self.head.grads[t]
        delta_BC, forget_BC, input_BC = head_B3C.chunk(3, dim=1)
        delta_grad_BC, forget_grad_BC, input_grad_BC = grad_B3C.chunk(3, dim=1)
        torch.mul(grad_BC, input_BC, out=delta_grad_BC)
        torch.mul(grad_BC, self.contexts[t], out=forget_grad_BC)
        torch.mul(grad_BC, delta_BC, out=input_grad_BC)
        gates_B2C, gates_grad_B2C = head_B3C[:, self.context_dim :], grad_B3C[:, self.context_dim :]
        aten.sigmoid_backward.grad_input(gates_grad_B2C, gates_B2C, grad_input=gates_grad_B2C)
        return grad_BC * forget_BC
