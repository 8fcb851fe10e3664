"""The way back through all steps of a segment.

Only gradients of activations are made here; those of weights are sums over time, which are large
products when all steps are done.
"""

import numpy as np
from numba import carray, njit

from newllm.models.recurrence.native.arrays import (
    array_at,
    fetch,
    history_at,
    history_of_layer,
    is_flagged,
    keep,
    padded_rows,
    pointer,
    reset,
    row_of,
    step_at,
)
from newllm.models.recurrence.native.norm import norm_backward, note_norm_grads
from newllm.models.recurrence.native.packing import (
    back_head_start,
    back_layer_start,
    packed_weights,
)
from newllm.models.recurrence.native.plan import PANEL
from newllm.models.recurrence.native.team import fetch_add, meet, share
from newllm.models.recurrence.native.tile import compiled, multiply


@compiled
def unrectify(plan, grads, outputs, low, high, t, dtype):
    """The gradient before ReLU and dropout, in place; the output tells what was dropped."""
    zero, scale, lanes = dtype(0), dtype(plan.scale), plan.lanes
    for row in range(low, high):
        grad, output = row_of(grads, row, 0, lanes), row_of(outputs, row, t * lanes, lanes)
        for b in range(lanes):
            grad[b] = grad[b] * scale if output[b] > zero else zero


@compiled
def unfinish(plan, low, high, member, t, dtype):
    """Back through padding, clip and norm; fills this thread's rows of the update's gradient.

    What the gradient of the context after the step does not pass on through the step, it passes on
    to the context before it.
    """
    size, lanes = plan.context_dim, plan.lanes
    rows, zero = padded_rows(size), dtype(0)
    grad = step_at(plan, plan.context_grad, rows, dtype)
    update_grad = step_at(plan, plan.update_step, rows, dtype)
    if plan.context_grads != 0:
        outside = history_at(plan, plan.context_grads, rows, dtype)
        for row in range(low, high):
            own, other = row_of(grad, row, 0, lanes), row_of(outside, row, t * lanes, lanes)
            for b in range(lanes):
                own[b] += other[b]
    for row in range(low, high):
        old, new = row_of(grad, row, 0, lanes), row_of(update_grad, row, 0, lanes)
        for b in range(lanes):
            new[b] = old[b]
            old[b] = zero
    if plan.has_pad:
        for b in range(plan.batch_size):
            if is_flagged(plan, plan.pad, t, b):
                for row in range(low, high):
                    grad[row, b] = update_grad[row, b]
                    update_grad[row, b] = zero
    if plan.is_clipped:
        limit = dtype(plan.clip)
        unclipped = history_at(plan, plan.unclipped, rows, dtype)
        for row in range(low, high):
            own, value = (
                row_of(update_grad, row, 0, lanes),
                row_of(unclipped, row, t * lanes, lanes),
            )
            for b in range(lanes):
                own[b] = zero if abs(value[b]) > limit else own[b]
    if plan.is_normed:
        update = history_at(plan, plan.update, rows, dtype)
        top = min(high, size)
        note_norm_grads(plan, 0, update_grad, update, low, top, member, t, dtype)
        meet(plan)
        norm_backward(
            plan, 0, size, update_grad, update, low, top, member, t, update_grad, False, dtype
        )


@compiled
def ungate(plan, low, high, t, dtype):
    """Back through the gating; fills this thread's rows of the head's gradient."""
    lanes, s = plan.lanes, t * plan.lanes
    rows, one, zero = padded_rows(plan.context_dim), dtype(1), dtype(0)
    grad = step_at(plan, plan.context_grad, rows, dtype)
    update_grad = step_at(plan, plan.update_step, rows, dtype)
    head_grad = step_at(plan, plan.head_step, plan.num_parts * rows, dtype)
    head = history_at(plan, plan.head, plan.num_parts * rows, dtype)
    contexts = array_at(plan.contexts, rows, plan.stride + lanes, dtype)
    for row in range(low, high):
        before_grad, change = row_of(grad, row, 0, lanes), row_of(update_grad, row, 0, lanes)
        delta_grad = row_of(head_grad, row, 0, lanes)
        if plan.is_gated:
            delta, before = row_of(head, row, s, lanes), row_of(contexts, row, s, lanes)
            forget = row_of(head, rows + row, s, lanes)
            input_ = row_of(head, 2 * rows + row, s, lanes)
            forget_grad = row_of(head_grad, rows + row, 0, lanes)
            input_grad = row_of(head_grad, 2 * rows + row, 0, lanes)
            for b in range(lanes):
                before_grad[b] += change[b] * forget[b]
                delta_grad[b] = change[b] * input_[b]
                forget_grad[b] = change[b] * before[b] * forget[b] * (one - forget[b])
                input_grad[b] = change[b] * delta[b] * input_[b] * (one - input_[b])
        else:
            for b in range(lanes):
                before_grad[b] += change[b]
                delta_grad[b] = change[b]
    if plan.has_reset and plan.is_gated:  # the gates met a context of zero
        for b in range(plan.batch_size):
            if is_flagged(plan, plan.reset, t, b):
                head_grad[rows + low : rows + high, b] = zero
    history = history_at(plan, plan.head_grads, plan.num_parts * rows, dtype)
    for part in range(plan.num_parts):
        keep(plan, history, head_grad, part * rows + low, part * rows + high, t)


@compiled
def unhead(plan, y, low, high, width, t, dtype):
    """The gradient of the hidden vectors, in this thread's rows of y."""
    rows, size = padded_rows(plan.context_dim), plan.context_dim
    packed = packed_weights(plan, dtype)
    hidden_grads = history_at(plan, plan.hidden_grads, padded_rows(plan.hidden_dim), dtype)
    head_grad = step_at(plan, plan.head_step, plan.num_parts * rows, dtype)
    for row in range(low, high, PANEL):
        fetch(plan, y, hidden_grads, row, row + PANEL, t)
        for part in range(plan.num_parts):
            start = back_head_start(plan, part) + row * size
            below = head_grad[part * rows : part * rows + size]
            multiply(y, row, packed, start, below, size, width)


@compiled
def transposed(plan, y, low, high, layer, source, width, dtype):
    """This thread's rows of y = transposed weight of a layer times source."""
    packed, size = packed_weights(plan, dtype), plan.hidden_dim
    for row in range(low, high, PANEL):
        y[row : row + PANEL, :] = dtype(0)
        start = back_layer_start(plan, layer) + row * size
        multiply(y, row, packed, start, source, size, width)


@compiled
def plain_backward(plan, low, high, width, member, t, dtype):
    """PlainFNN; returns the step that holds the gradient of the projection."""
    rows = padded_rows(plan.hidden_dim)
    target = step_at(plan, plan.first, rows, dtype)
    source = step_at(plan, plan.second, rows, dtype)
    unhead(plan, target, low, high, width, t, dtype)
    for layer in range(plan.num_layers - 1, -1, -1):
        if layer < plan.num_layers - 1:
            transposed(plan, target, low, high, layer + 1, source, width, dtype)
        outputs = history_of_layer(plan, plan.layers, layer, dtype)
        unrectify(plan, target, outputs, low, high, t, dtype)
        keep(plan, history_of_layer(plan, plan.layer_grads, layer, dtype), target, low, high, t)
        meet(plan)
        source, target = target, source
    return source


@compiled
def residual_backward(plan, low, high, width, member, t, dtype):
    """ResidualFNN; returns the step that holds the gradient of the projection."""
    size = plan.hidden_dim
    rows, top, last = padded_rows(size), min(high, size), plan.num_layers
    stream = step_at(plan, plan.first, rows, dtype)
    normed = step_at(plan, plan.second, rows, dtype)
    unhead(plan, normed, low, high, width, t, dtype)
    stream[low:high, :] = dtype(0)
    for layer in range(last, 0, -1):
        if layer < last:
            keep(plan, history_of_layer(plan, plan.layer_grads, layer, dtype), stream, low, high, t)
            meet(plan)
            transposed(plan, normed, low, high, layer, stream, width, dtype)
            outputs = history_of_layer(plan, plan.rectified, layer, dtype)
            unrectify(plan, normed, outputs, low, high, t, dtype)
        inputs = history_of_layer(plan, plan.layers, layer - 1, dtype)
        note_norm_grads(plan, layer, normed, inputs, low, top, member, t, dtype)
        meet(plan)
        norm_backward(plan, layer, size, normed, inputs, low, top, member, t, stream, True, dtype)
    keep(plan, history_of_layer(plan, plan.layer_grads, 0, dtype), stream, low, high, t)
    meet(plan)
    return stream


@njit(error_model="numpy", inline="always")
def backward(plan, dtype):
    member = fetch_add(plan.sync)
    h_low, h_high = share(padded_rows(plan.hidden_dim), member, plan.num_threads)
    rows = padded_rows(plan.context_dim)
    c_low, c_high = share(rows, member, plan.num_threads)
    widths = carray(pointer(plan.widths), plan.num_steps, np.int64)
    grad = step_at(plan, plan.context_grad, rows, dtype)
    packed = packed_weights(plan, dtype)
    for t in range(plan.num_steps - 1, -1, -1):
        unfinish(plan, c_low, c_high, member, t, dtype)
        ungate(plan, c_low, c_high, t, dtype)
        meet(plan)
        if plan.is_residual:
            source = residual_backward(plan, h_low, h_high, widths[t], member, t, dtype)
        else:
            source = plain_backward(plan, h_low, h_high, widths[t], member, t, dtype)
        for row in range(c_low, c_high, PANEL):
            start = back_layer_start(plan, 0) + row * plan.hidden_dim
            multiply(grad, row, packed, start, source, plan.hidden_dim, widths[t])
        reset(plan, grad, c_low, c_high, t, dtype)
