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
from newllm.models.recurrence.native.call import PANEL
from newllm.models.recurrence.native.norm import norm_backward, note_norm_grads
from newllm.models.recurrence.native.packing import (
    back_head_start,
    back_layer_start,
    packed_weights,
)
from newllm.models.recurrence.native.team import fetch_add, meet, share
from newllm.models.recurrence.native.tile import compiled, multiply


@compiled
def unrectify(call, grads, outputs, low, high, t, dtype):
    """The gradient before ReLU and dropout, in place; the output tells what was dropped."""
    zero, scale, lanes = dtype(0), dtype(call.scale), call.lanes
    for row in range(low, high):
        grad, output = row_of(grads, row, 0, lanes), row_of(outputs, row, t * lanes, lanes)
        for b in range(lanes):
            grad[b] = grad[b] * scale if output[b] > zero else zero


@compiled
def unfinish(call, low, high, member, t, dtype):
    """Back through padding, clip and norm; fills this thread's rows of the update's gradient.

    What the gradient of the context after the step does not pass on through the step, it passes on
    to the context before it.
    """
    size, lanes = call.context_dim, call.lanes
    rows, zero = padded_rows(size), dtype(0)
    grad = step_at(call, call.context_grad, rows, dtype)
    update_grad = step_at(call, call.update_step, rows, dtype)
    if call.context_grads != 0:
        outside = history_at(call, call.context_grads, rows, dtype)
        for row in range(low, high):
            own, other = row_of(grad, row, 0, lanes), row_of(outside, row, t * lanes, lanes)
            for b in range(lanes):
                own[b] += other[b]
    for row in range(low, high):
        old, new = row_of(grad, row, 0, lanes), row_of(update_grad, row, 0, lanes)
        for b in range(lanes):
            new[b] = old[b]
            old[b] = zero
    if call.has_pad:
        for b in range(call.batch_size):
            if is_flagged(call, call.pad, t, b):
                for row in range(low, high):
                    grad[row, b] = update_grad[row, b]
                    update_grad[row, b] = zero
    if call.is_clipped:
        limit = dtype(call.clip)
        unclipped = history_at(call, call.unclipped, rows, dtype)
        for row in range(low, high):
            own, value = (
                row_of(update_grad, row, 0, lanes),
                row_of(unclipped, row, t * lanes, lanes),
            )
            for b in range(lanes):
                own[b] = zero if abs(value[b]) > limit else own[b]
    if call.is_normed:
        update = history_at(call, call.update, rows, dtype)
        top = min(high, size)
        note_norm_grads(call, 0, update_grad, update, low, top, member, t, dtype)
        meet(call)
        norm_backward(
            call, 0, size, update_grad, update, low, top, member, t, update_grad, False, dtype
        )


@compiled
def ungate(call, low, high, t, dtype):
    """Back through the gating; fills this thread's rows of the head's gradient."""
    lanes, s = call.lanes, t * call.lanes
    rows, one, zero = padded_rows(call.context_dim), dtype(1), dtype(0)
    grad = step_at(call, call.context_grad, rows, dtype)
    update_grad = step_at(call, call.update_step, rows, dtype)
    head_grad = step_at(call, call.head_step, call.num_parts * rows, dtype)
    head = history_at(call, call.head, call.num_parts * rows, dtype)
    contexts = array_at(call.contexts, rows, call.stride + lanes, dtype)
    for row in range(low, high):
        before_grad, change = row_of(grad, row, 0, lanes), row_of(update_grad, row, 0, lanes)
        delta_grad = row_of(head_grad, row, 0, lanes)
        if call.is_gated:
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
    if call.has_reset and call.is_gated:  # the gates met a context of zero
        for b in range(call.batch_size):
            if is_flagged(call, call.reset, t, b):
                head_grad[rows + low : rows + high, b] = zero
    history = history_at(call, call.head_grads, call.num_parts * rows, dtype)
    for part in range(call.num_parts):
        keep(call, history, head_grad, part * rows + low, part * rows + high, t)


@compiled
def unhead(call, y, low, high, width, t, dtype):
    """The gradient of the hidden vectors, in this thread's rows of y."""
    rows, size = padded_rows(call.context_dim), call.context_dim
    packed = packed_weights(call, dtype)
    hidden_grads = history_at(call, call.hidden_grads, padded_rows(call.hidden_dim), dtype)
    head_grad = step_at(call, call.head_step, call.num_parts * rows, dtype)
    for row in range(low, high, PANEL):
        fetch(call, y, hidden_grads, row, row + PANEL, t)
        for part in range(call.num_parts):
            start = back_head_start(call, part) + row * size
            below = head_grad[part * rows : part * rows + size]
            multiply(y, row, packed, start, below, size, width)


@compiled
def transposed(call, y, low, high, layer, source, width, dtype):
    """This thread's rows of y = transposed weight of a layer times source."""
    packed, size = packed_weights(call, dtype), call.hidden_dim
    for row in range(low, high, PANEL):
        y[row : row + PANEL, :] = dtype(0)
        start = back_layer_start(call, layer) + row * size
        multiply(y, row, packed, start, source, size, width)


@compiled
def plain_backward(call, low, high, width, member, t, dtype):
    """PlainFNN; returns the step that holds the gradient of the projection."""
    rows = padded_rows(call.hidden_dim)
    target = step_at(call, call.first, rows, dtype)
    source = step_at(call, call.second, rows, dtype)
    unhead(call, target, low, high, width, t, dtype)
    for layer in range(call.num_layers - 1, -1, -1):
        if layer < call.num_layers - 1:
            transposed(call, target, low, high, layer + 1, source, width, dtype)
        outputs = history_of_layer(call, call.layers, layer, dtype)
        unrectify(call, target, outputs, low, high, t, dtype)
        keep(call, history_of_layer(call, call.layer_grads, layer, dtype), target, low, high, t)
        meet(call)
        source, target = target, source
    return source


@compiled
def residual_backward(call, low, high, width, member, t, dtype):
    """ResidualFNN; returns the step that holds the gradient of the projection."""
    size = call.hidden_dim
    rows, top, last = padded_rows(size), min(high, size), call.num_layers
    stream = step_at(call, call.first, rows, dtype)
    normed = step_at(call, call.second, rows, dtype)
    unhead(call, normed, low, high, width, t, dtype)
    stream[low:high, :] = dtype(0)
    for layer in range(last, 0, -1):
        if layer < last:
            keep(call, history_of_layer(call, call.layer_grads, layer, dtype), stream, low, high, t)
            meet(call)
            transposed(call, normed, low, high, layer, stream, width, dtype)
            outputs = history_of_layer(call, call.rectified, layer, dtype)
            unrectify(call, normed, outputs, low, high, t, dtype)
        inputs = history_of_layer(call, call.layers, layer - 1, dtype)
        note_norm_grads(call, layer, normed, inputs, low, top, member, t, dtype)
        meet(call)
        norm_backward(call, layer, size, normed, inputs, low, top, member, t, stream, True, dtype)
    keep(call, history_of_layer(call, call.layer_grads, 0, dtype), stream, low, high, t)
    meet(call)
    return stream


@njit(error_model="numpy", inline="always")
def backward(call, dtype):
    member = fetch_add(call.sync)
    h_low, h_high = share(padded_rows(call.hidden_dim), member, call.num_threads)
    rows = padded_rows(call.context_dim)
    c_low, c_high = share(rows, member, call.num_threads)
    widths = carray(pointer(call.widths), call.num_steps, np.int64)
    grad = step_at(call, call.context_grad, rows, dtype)
    packed = packed_weights(call, dtype)
    for t in range(call.num_steps - 1, -1, -1):
        unfinish(call, c_low, c_high, member, t, dtype)
        ungate(call, c_low, c_high, t, dtype)
        meet(call)
        if call.is_residual:
            source = residual_backward(call, h_low, h_high, widths[t], member, t, dtype)
        else:
            source = plain_backward(call, h_low, h_high, widths[t], member, t, dtype)
        for row in range(c_low, c_high, PANEL):
            start = back_layer_start(call, 0) + row * call.hidden_dim
            multiply(grad, row, packed, start, source, call.hidden_dim, widths[t])
        reset(call, grad, c_low, c_high, t, dtype)
