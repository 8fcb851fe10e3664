"""A segment of steps of the context cell as one autograd function, carried out by `native`.

What is a sum over time, the gradients of the weights, waits until the loop over time is over and
is then one large product instead of one for each step.

Shapes: B batch, W lanes, K steps of a segment, E embedding, C context, H hidden, N any width.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from newllm.models.recurrence.native import launch
from newllm.models.recurrence.native.buffers import Buffers
from newllm.models.recurrence.native.call import lanes_of, padded
from newllm.models.recurrence.native.team import num_threads
from newllm.models.recurrence.native.weights import Weights
from newllm.models.recurrence.reference import DropoutMasks

STRIDE_PADDING = 16  # keeps rows of a history off addresses that share a line of the cache


class Inputs(NamedTuple):
    """What a segment reads beside the context: arguments as of a `Recurrence`."""

    embedded_BKE: Tensor
    pad_BK: Tensor | None
    reset_BK: Tensor | None
    masks: DropoutMasks | None


class Segment:
    """The arrays of one segment and the call that tells `native` of them.

    Feature-major as there: a history is [N, K * W] and some padding.

    Args:
        weights: of the cell.
        inputs: what to read.
        context_BC: the context before the first step.
        is_kept: whether there will be a way back.
    """

    def __init__(self, weights: Weights, inputs: Inputs, context_BC: Tensor, is_kept: bool) -> None:
        cell = weights.cell
        self.weights, self.inputs = weights, inputs
        self.batch_size, self.num_steps, _ = inputs.embedded_BKE.shape
        self.lanes = lanes_of(self.batch_size, weights.dtype)
        self.num_columns = self.num_steps * self.lanes
        self.buffers = Buffers(weights.memory, weights.dtype)
        self.hidden_rows, self.context_rows = padded(cell.hidden_dim), padded(cell.context_dim)
        self.head_rows = len(weights.heads) * self.context_rows
        self.is_kept = is_kept
        # Copies, because the caller's may change before the way back.
        self.embedded = self._embedded(inputs.embedded_BKE)
        self.pad, self.reset = _flags_by_step(inputs.pad_BK), _flags_by_step(inputs.reset_BK)
        self.widths = _widths(inputs.pad_BK, self.batch_size, self.num_steps)
        self.contexts = self.buffers.matrix(
            self.context_rows, self.num_columns + STRIDE_PADDING + self.lanes
        )
        first_CW = self.contexts[: cell.context_dim, : self.lanes]
        first_CW.zero_()[:, : self.batch_size] = context_BC.t()
        self._take_histories(is_kept)
        torch.addmm(
            cell.input.bias[:, None],
            weights.embedding_weight,
            self.embedded.t(),
            out=self._used(self.layers[0], cell.hidden_dim),
        )

    def _embedded(self, embedded_BKE: Tensor) -> Tensor:
        """As [K * W, E], zero beyond the batch."""
        shape = (self.num_steps, self.lanes, embedded_BKE.shape[2])
        is_full = self.lanes == self.batch_size
        wide_KWE = embedded_BKE.new_empty(shape) if is_full else embedded_BKE.new_zeros(shape)
        wide_KWE[:, : self.batch_size] = embedded_BKE.transpose(0, 1)
        return wide_KWE.flatten(0, 1)

    def _history(self, num_rows: int) -> Tensor:
        return self.buffers.matrix(num_rows, self.num_columns + STRIDE_PADDING)

    def _used(self, history: Tensor, num_rows: int) -> Tensor:
        """A history [num_rows, K * W] without its padding."""
        return history[:num_rows, : self.num_columns]

    def _take_histories(self, is_kept: bool) -> None:
        waste = None if is_kept else self._history(max(self.hidden_rows, self.head_rows))

        def kept(num_rows: int) -> Tensor:
            """A history for the way back; without one they all share their place."""
            return self._history(num_rows) if waste is None else waste

        num_inner = len(self.weights.layers)
        self.layers = [self._history(self.hidden_rows)]
        self.layers += [kept(self.hidden_rows) for _ in range(num_inner)]
        self.rectified, self.hidden = self.layers, self.layers[-1]
        if self.weights.is_residual:
            self.rectified = [kept(self.hidden_rows) for _ in self.layers]
        if self.weights.is_residual or (num_inner and not is_kept):
            self.hidden = self._history(self.hidden_rows)
        if not self.weights.is_residual:
            self.layers[-1] = self.hidden
        self.head, self.update = kept(self.head_rows), kept(self.context_rows)
        is_clipped = self.weights.cell.context_clip is not None
        self.unclipped = kept(self.context_rows) if is_clipped else self.update
        self.statistics = self._history(2 * len(self.weights.norms))

    def forward(self, known_BKC: Tensor | None) -> None:
        """Take all steps in order; or all at once, if the contexts after them are known."""
        weights, masks = self.weights, self.inputs.masks
        wanted = len(weights.packing) if self.is_kept else weights.num_forward
        arrays: dict[str, Any] = {
            "num_packings": wanted if weights.num_packed < wanted else 0,
            "draws": None if masks is None else masks.draws(self.num_steps),
        }
        weights.num_packed = max(weights.num_packed, wanted)
        if known_BKC is None or self.lanes > self.batch_size:
            self._run("forward", self.num_steps, **arrays)
        else:
            arrays |= self._side_by_side(known_BKC, arrays["draws"])
            self._run("forward", 1, **arrays)

    def _side_by_side(self, known_BKC: Tensor, draws: Tensor | None) -> dict[str, Any]:
        """The steps as the rows of one large batch: their histories are the same in memory."""
        cell, columns = self.weights.cell, self.num_columns
        self._by_step(self.contexts, cell.context_dim, first=1).copy_(known_BKC.permute(2, 1, 0))
        contexts = self.buffers.matrix(self.context_rows, 2 * columns + STRIDE_PADDING)
        contexts[:, :columns] = self.contexts[:, :columns]
        arrays: dict[str, Any] = {"contexts": contexts, "widths": torch.tensor([columns])}
        if draws is not None:
            arrays["draws"] = draws.transpose(1, 2).contiguous()
        return arrays

    def backward(
        self, hidden_grad_BKH: Tensor | None, contexts_grad_BKC: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Take all steps back.

        Args:
            hidden_grad_BKH: gradient with respect to the hidden vectors; None means zero.
            contexts_grad_BKC: with respect to the contexts after each step; None means zero.

        Returns:
            The gradients of the embedded tokens [B, K, E] and of the context before [B, C].
        """
        cell, lanes = self.weights.cell, self.lanes
        self.hidden_grads = self._filled(hidden_grad_BKH, self.hidden_rows)
        if self.pad is not None:
            hidden_HKB = self._by_step(self.hidden_grads, cell.hidden_dim)
            hidden_HKB.masked_fill_(self.pad.bool(), 0)
        outside = contexts_grad_BKC
        context_grads = None if outside is None else self._filled(outside, self.context_rows)
        self.layer_grads = [self._history(self.hidden_rows) for _ in self.layers]
        self.head_grads = self._history(self.head_rows)
        context_grad = self.buffers.matrix(self.context_rows, lanes).zero_()
        num_norms = len(self.weights.norms)
        norm_rows = 2 * (self.context_rows + (num_norms - 1) * self.hidden_rows)
        self.norm_grads = self.buffers.matrix(norm_rows, lanes).zero_()
        self._run(
            "backward",
            self.num_steps,
            num_packings=0,
            draws=None,
            hidden_grads=self.hidden_grads,
            context_grads=context_grads,
            layer_grads=self.layer_grads,
            head_grads=self.head_grads,
            norm_grads=self.norm_grads,
            context_grad=context_grad,
        )
        projected_grad = self._used(self.layer_grads[0], cell.hidden_dim)
        embedded_grad = projected_grad.t() @ self.weights.embedding_weight
        embedded_grad_BKE = embedded_grad.view(self.num_steps, lanes, -1)[
            :, : self.batch_size
        ].transpose(0, 1)
        return embedded_grad_BKE, context_grad[: cell.context_dim, : self.batch_size].t().clone()

    def _filled(self, grad_BKN: Tensor | None, num_rows: int) -> Tensor:
        """A gradient as a history; zero beyond the batch."""
        history = self._history(num_rows)
        if grad_BKN is None:
            return history.zero_()
        if self.lanes > self.batch_size:
            history.zero_()
        self._by_step(history, grad_BKN.shape[2]).copy_(grad_BKN.permute(2, 1, 0))
        return history

    def _by_step(self, history: Tensor, num_rows: int, first: int = 0) -> Tensor:
        """What a history holds of the batch, [N, K, B]."""
        used = history[:num_rows, first * self.lanes :][:, : self.num_columns]
        return used.unflatten(1, (self.num_steps, self.lanes))[:, :, : self.batch_size]

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Copies of the hidden vectors [B, K, H] and of the contexts after each step [B, K, C]."""
        hidden_HKB = self._by_step(self.hidden, self.weights.cell.hidden_dim)
        contexts_CKB = self._by_step(self.contexts, self.weights.cell.context_dim, first=1)
        contiguous = torch.contiguous_format
        return (
            hidden_HKB.permute(2, 1, 0).clone(memory_format=contiguous),
            contexts_CKB.permute(2, 1, 0).clone(memory_format=contiguous),
        )

    def _run(self, direction: str, num_steps: int, **arrays: Any) -> None:
        """Give `native` all numbers and addresses, `arrays` first.

        With `num_steps` 1 all steps are the rows of one batch.
        """
        weights, cell = self.weights, self.weights.cell
        masks, threads = self.inputs.masks, num_threads()
        lanes = self.num_columns // num_steps

        def step(num_rows: int) -> Tensor:
            return self.buffers.matrix(num_rows, lanes)

        fields: dict[str, Any] = {
            "is_residual": weights.is_residual,
            "is_gated": len(weights.heads) > 1,
            "is_normed": weights.norms[0] is not None,
            "is_clipped": cell.context_clip is not None,
            "has_pad": self.pad is not None,
            "has_reset": self.reset is not None,
            "drops": masks is not None,
            "num_threads": threads,
            "num_steps": num_steps,
            "batch_size": self.batch_size if num_steps == self.num_steps else lanes,
            "lanes": lanes,
            "stride": self.num_columns + STRIDE_PADDING,
            "context_dim": cell.context_dim,
            "hidden_dim": cell.hidden_dim,
            "num_layers": len(self.layers),
            "num_parts": len(weights.heads),
            "dropped": 0 if masks is None else masks.dropped,
            "scale": 1.0 if masks is None else masks.scale,
            "clip": cell.context_clip or 0.0,
            "sync": torch.zeros(16, dtype=torch.int64),
            "first": step(self.hidden_rows),
            "second": step(self.hidden_rows),
            "head_step": step(self.head_rows),
            "update_step": step(self.context_rows),
            "context_step": step(self.context_rows),
            "partials": step(2 * threads),
            "moments": step(2 * threads),
            "packing": weights.packing,
            "packed": weights.packed,
            "epsilons": weights.epsilons,
            "pad": self.pad,
            "reset": self.reset,
            "widths": self.widths,
            "contexts": self.contexts,
            "layers": self.layers,
            "rectified": self.rectified,
            "hidden": self.hidden,
            "head": self.head,
            "update": self.update,
            "unclipped": self.unclipped,
            "statistics": self.statistics,
            **arrays,
        }
        launch.run(direction, weights.dtype, fields)

    def gradients(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The parameters and their gradients, after `backward`."""
        weights, cell = self.weights, self.weights.cell
        size = cell.hidden_dim
        grads = [self._used(grads, size) for grads in self.layer_grads]
        contexts = self.contexts[: cell.context_dim, : self.num_columns]
        if self.reset is not None:
            contexts = contexts.clone()
            self._by_step(contexts, cell.context_dim).masked_fill_(self.reset.bool(), 0)
        projection = torch.empty_like(cell.input.weight)
        embedding_half, context_half = projection.split(
            [self.embedded.shape[1], cell.context_dim], dim=1
        )
        embedding_half.copy_(grads[0] @ self.embedded)
        context_half.copy_(grads[0] @ contexts.t())
        yield cell.input.weight, projection
        yield cell.input.bias, grads[0].sum(1)
        inputs = self.rectified[1:] if weights.is_residual else self.layers
        for linear, grad, source in zip(weights.layers, grads[1:], inputs, strict=False):
            yield linear.weight, grad @ self._used(source, size).t()
            yield linear.bias, grad.sum(1)
        hidden = self._used(self.hidden, size)
        for part, linear in enumerate(weights.heads):
            first = part * self.context_rows
            grad = self._used(self.head_grads[first:], cell.context_dim)
            yield linear.weight, grad @ hidden.t()
            yield linear.bias, grad.sum(1)
        yield from self._norm_gradients()

    def _norm_gradients(self) -> Iterator[tuple[Tensor, Tensor]]:
        sums = self.norm_grads.sum(1)
        start, rows = 0, self.context_rows
        for norm in self.weights.norms:
            if norm is not None:
                size = norm.normalized_shape[0]
                if norm.weight is not None:
                    yield norm.weight, sums[start : start + size].clone()
                if norm.bias is not None:
                    yield norm.bias, sums[start + rows : start + rows + size].clone()
            start, rows = start + 2 * rows, self.hidden_rows


def _widths(pad_BK: Tensor | None, batch_size: int, num_steps: int) -> Tensor:
    """At each step, how many rows of the batch lie before the last one that is not padding."""
    if pad_BK is None:
        return torch.full((num_steps,), batch_size)
    number_B1 = torch.arange(1, batch_size + 1)[:, None]
    return (number_B1 * ~pad_BK).amax(0)


def _flags_by_step(flags_BK: Tensor | None) -> Tensor | None:
    return None if flags_BK is None else flags_BK.t().contiguous().byte()


class ReadSegment(torch.autograd.Function):
    """Read a segment: hidden vectors [B, K, H] and contexts [B, K, C] from (embedded, context)."""

    @staticmethod
    def forward(
        ctx: Any,
        weights: Weights,
        inputs: Inputs,
        is_kept: bool,
        known_BKC: Tensor | None,
        embedded_BKE: Tensor,
        context_BC: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        # Recomputing, the way back comes only later; yet a training waits once.
        is_training = is_kept or weights.cell.training
        launch.prepare(("forward", "backward") if is_training else ("forward",), weights.dtype)
        segment = Segment(weights, inputs, context_BC, is_kept)
        segment.forward(known_BKC)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*parameters)
        ctx.segment = segment
        return segment.outputs()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, hidden_grad_BKH: Tensor | None, contexts_grad_BKC: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.saved_tensors  # noqa: B018  (raises if a weight was changed since)
        segment = ctx.segment
        with torch.autocast("cpu", enabled=False):  # as it was forward
            embedded_grad, context_grad = segment.backward(hidden_grad_BKH, contexts_grad_BKC)
            grads: dict[Tensor, Tensor] = {}
            for parameter, grad in segment.gradients():  # one that is used twice comes twice
                grads[parameter] = grads[parameter] + grad if parameter in grads else grad
        own = (grads[parameter] for parameter in segment.weights.parameters)
        return None, None, None, None, embedded_grad, context_grad, *own


def read_segment(
    weights: Weights, inputs: Inputs, context_BC: Tensor, known_BKC: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Give the hidden vectors [B, K, H] and the contexts [B, K, C] of a segment.

    Args:
        weights: of the cell.
        inputs: what to read.
        context_BC: the context before the first step.
        known_BKC: the contexts after each step, if they were found before.
    """
    wanted = (inputs.embedded_BKE, context_BC, *weights.parameters)
    hidden_BKH, contexts_BKC = ReadSegment.apply(
        weights,
        inputs._replace(embedded_BKE=inputs.embedded_BKE.detach()),
        torch.is_grad_enabled() and any(tensor.requires_grad for tensor in wanted),
        known_BKC,
        inputs.embedded_BKE,
        context_BC,
        *weights.parameters,
    )
    return hidden_BKH, contexts_BKC
