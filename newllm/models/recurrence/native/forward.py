"""The cell's equations, for all steps of a segment."""

import numpy as np
from numba import carray, njit

from newllm.models.recurrence.native.arrays import (
    array_at,
    exponential,
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
from newllm.models.recurrence.native.norm import merge_moments, normalize, note_moments
from newllm.models.recurrence.native.packing import (
    head_bias_start,
    head_start,
    layer_bias_start,
    layer_start,
    pack,
    packed_weights,
)
from newllm.models.recurrence.native.team import fetch_add, meet, share
from newllm.models.recurrence.native.tile import compiled, multiply


@compiled
def rectify(call, y, low, high, layer, t, dtype):
    """ReLU and dropout of rows of a step, in place."""
    zero, scale = dtype(0), dtype(call.scale)
    for row in range(low, high):
        value = row_of(y, row, 0, call.lanes)
        for b in range(call.lanes):
            value[b] = max(value[b], zero)
    if call.drops:
        batch = call.batch_size
        num_rows = call.num_steps * call.hidden_dim
        draws = array_at(call.draws + 2 * layer * num_rows * batch, num_rows, batch, np.int16)
        first, dropped = t * call.hidden_dim, np.int16(call.dropped)
        for row in range(low, min(high, call.hidden_dim)):
            value, draw = row_of(y, row, 0, batch), row_of(draws, first + row, 0, batch)
            for b in range(batch):
                value[b] = value[b] * scale if draw[b] >= dropped else zero


@compiled
def fill(y, row, packed, start):
    """Start 16 rows from their biases."""
    for r in range(row, row + PANEL):
        value = row_of(y, r, 0, y.shape[1])
        for b in range(y.shape[1]):
            value[b] = packed[start + r]


@compiled
def plain_forward(call, low, high, width, member, t, dtype):
    """PlainFNN; returns the step that holds the hidden vectors."""
    rows = padded_rows(call.hidden_dim)
    packed = packed_weights(call, dtype)
    source = step_at(call, call.context_step, padded_rows(call.context_dim), dtype)
    target = step_at(call, call.first, rows, dtype)
    spare = step_at(call, call.second, rows, dtype)
    for layer in range(call.num_layers):
        depth = call.hidden_dim if layer else call.context_dim
        start = layer_start(call, layer)
        if layer == 0:
            fetch(call, target, history_of_layer(call, call.layers, 0, dtype), low, high, t)
        for row in range(low, high, PANEL):
            if layer:
                fill(target, row, packed, layer_bias_start(call, layer))
            multiply(target, row, packed, start + row * depth, source, depth, width)
        rectify(call, target, low, high, layer, t, dtype)
        keep(call, history_of_layer(call, call.layers, layer, dtype), target, low, high, t)
        meet(call)
        source, target, spare = target, spare, target
    return source


@compiled
def residual_forward(call, low, high, width, member, t, dtype):
    """ResidualFNN; returns the step that holds the hidden vectors."""
    size = call.hidden_dim
    rows, top = padded_rows(size), min(high, size)
    packed = packed_weights(call, dtype)
    context = step_at(call, call.context_step, padded_rows(call.context_dim), dtype)
    stream = step_at(call, call.first, rows, dtype)
    normed = step_at(call, call.second, rows, dtype)
    fetch(call, stream, history_of_layer(call, call.layers, 0, dtype), low, high, t)
    for row in range(low, high, PANEL):
        start = layer_start(call, 0) + row * call.context_dim
        multiply(stream, row, packed, start, context, call.context_dim, width)
    for layer in range(1, call.num_layers + 1):
        keep(call, history_of_layer(call, call.layers, layer - 1, dtype), stream, low, high, t)
        note_moments(call, stream, low, top, member, dtype)
        meet(call)
        mean, inverse = merge_moments(call, layer, size, member, t, dtype)
        normalize(call, layer, normed, stream, low, high, mean, inverse, dtype)
        if layer == call.num_layers:
            break
        rectify(call, normed, low, high, layer - 1, t, dtype)
        keep(call, history_of_layer(call, call.rectified, layer, dtype), normed, low, high, t)
        meet(call)
        bias_start = layer_bias_start(call, layer)
        for row in range(low, high, PANEL):
            for r in range(row, row + PANEL):
                value = row_of(stream, r, 0, call.lanes)
                for b in range(call.lanes):
                    value[b] += packed[bias_start + r]
            start = layer_start(call, layer) + row * size
            multiply(stream, row, packed, start, normed, size, width)
    keep(call, history_at(call, call.hidden, rows, dtype), normed, low, high, t)
    meet(call)
    return normed


@compiled
def gate(call, hidden, low, high, width, t, dtype):
    """The head and the gating; fills this thread's rows of the update."""
    size, lanes = call.hidden_dim, call.lanes
    rows = padded_rows(call.context_dim)
    packed = packed_weights(call, dtype)
    head = step_at(call, call.head_step, call.num_parts * rows, dtype)
    for row in range(low, high, PANEL):
        for part in range(call.num_parts):
            fill(head, part * rows + row, packed, head_bias_start(call, part) - part * rows)
            start = head_start(call, part) + row * size
            multiply(head, part * rows + row, packed, start, hidden, size, width)
    context = step_at(call, call.context_step, rows, dtype)
    update = step_at(call, call.update_step, rows, dtype)
    one = dtype(1)
    for row in range(low, high):
        old, new = row_of(context, row, 0, lanes), row_of(update, row, 0, lanes)
        delta = row_of(head, row, 0, lanes)
        if call.is_gated:
            forget = row_of(head, rows + row, 0, lanes)
            input_ = row_of(head, 2 * rows + row, 0, lanes)
            for b in range(lanes):
                forget[b] = one / (one + exponential(-forget[b]))
            for b in range(lanes):
                input_[b] = one / (one + exponential(-input_[b]))
            for b in range(lanes):
                new[b] = forget[b] * old[b] + input_[b] * delta[b]
        else:
            for b in range(lanes):
                new[b] = old[b] + delta[b]
    history = history_at(call, call.head, call.num_parts * rows, dtype)
    for part in range(call.num_parts):
        keep(call, history, head, part * rows + low, part * rows + high, t)
    keep(call, history_at(call, call.update, rows, dtype), update, low, high, t)


@compiled
def finish(call, low, high, member, t, dtype):
    """Norm, clip and padding; fills this thread's rows of the next context."""
    size, lanes = call.context_dim, call.lanes
    rows = padded_rows(size)
    update = step_at(call, call.update_step, rows, dtype)
    context = step_at(call, call.context_step, rows, dtype)
    if call.is_normed:
        note_moments(call, update, low, min(high, size), member, dtype)
        meet(call)
        mean, inverse = merge_moments(call, 0, size, member, t, dtype)
        normalize(call, 0, update, update, low, high, mean, inverse, dtype)
    for row in range(low, high):
        beyond = row_of(update, row, call.batch_size, lanes - call.batch_size)
        for b in range(lanes - call.batch_size):
            beyond[b] = dtype(0)  # or it would grow, a sequence that nobody ever resets
    if call.is_clipped:
        keep(call, history_at(call, call.unclipped, rows, dtype), update, low, high, t)
        limit = dtype(call.clip)
        for row in range(low, high):
            value = row_of(update, row, 0, lanes)
            for b in range(lanes):
                value[b] = min(max(value[b], -limit), limit)
    if call.has_pad:
        for b in range(call.batch_size):
            if is_flagged(call, call.pad, t, b):
                for row in range(low, high):
                    update[row, b] = context[row, b]
    contexts = array_at(call.contexts, rows, call.stride + lanes, dtype)
    keep(call, contexts, update, low, high, t + 1)
    keep(call, context, update, low, high, 0)
    if t + 1 < call.num_steps:
        reset(call, context, low, high, t + 1, dtype)


@njit(error_model="numpy", inline="always")
def forward(call, dtype):
    member = fetch_add(call.sync)
    h_low, h_high = share(padded_rows(call.hidden_dim), member, call.num_threads)
    rows = padded_rows(call.context_dim)
    c_low, c_high = share(rows, member, call.num_threads)
    widths = carray(pointer(call.widths), call.num_steps, np.int64)
    context = step_at(call, call.context_step, rows, dtype)
    contexts = array_at(call.contexts, rows, call.stride + call.lanes, dtype)
    if call.num_packings:
        pack(call, member, dtype)
    fetch(call, context, contexts, c_low, c_high, 0)
    reset(call, context, c_low, c_high, 0, dtype)
    meet(call)
    for t in range(call.num_steps):
        if call.is_residual:
            hidden = residual_forward(call, h_low, h_high, widths[t], member, t, dtype)
        else:
            hidden = plain_forward(call, h_low, h_high, widths[t], member, t, dtype)
        gate(call, hidden, c_low, c_high, widths[t], t, dtype)
        finish(call, c_low, c_high, member, t, dtype)
        meet(call)
