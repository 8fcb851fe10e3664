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
from newllm.models.recurrence.native.norm import merge_moments, normalize, note_moments
from newllm.models.recurrence.native.packing import (
    head_bias_start,
    head_start,
    layer_bias_start,
    layer_start,
    pack,
    packed_weights,
)
from newllm.models.recurrence.native.plan import PANEL
from newllm.models.recurrence.native.team import fetch_add, meet, share
from newllm.models.recurrence.native.tile import compiled, multiply


@compiled
def rectify(plan, y, low, high, layer, t, dtype):
    """ReLU and dropout of rows of a step, in place."""
    zero, scale = dtype(0), dtype(plan.scale)
    for row in range(low, high):
        value = row_of(y, row, 0, plan.lanes)
        for b in range(plan.lanes):
            value[b] = max(value[b], zero)
    if plan.drops:
        batch = plan.batch_size
        num_rows = plan.num_steps * plan.hidden_dim
        draws = array_at(plan.draws + 2 * layer * num_rows * batch, num_rows, batch, np.int16)
        first, dropped = t * plan.hidden_dim, np.int16(plan.dropped)
        for row in range(low, min(high, plan.hidden_dim)):
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
def plain_forward(plan, low, high, width, member, t, dtype):
    """PlainFNN; returns the step that holds the hidden vectors."""
    rows = padded_rows(plan.hidden_dim)
    packed = packed_weights(plan, dtype)
    source = step_at(plan, plan.context_step, padded_rows(plan.context_dim), dtype)
    target = step_at(plan, plan.first, rows, dtype)
    spare = step_at(plan, plan.second, rows, dtype)
    for layer in range(plan.num_layers):
        depth = plan.hidden_dim if layer else plan.context_dim
        start = layer_start(plan, layer)
        if layer == 0:
            fetch(plan, target, history_of_layer(plan, plan.layers, 0, dtype), low, high, t)
        for row in range(low, high, PANEL):
            if layer:
                fill(target, row, packed, layer_bias_start(plan, layer))
            multiply(target, row, packed, start + row * depth, source, depth, width)
        rectify(plan, target, low, high, layer, t, dtype)
        keep(plan, history_of_layer(plan, plan.layers, layer, dtype), target, low, high, t)
        meet(plan)
        source, target, spare = target, spare, target
    return source


@compiled
def residual_forward(plan, low, high, width, member, t, dtype):
    """ResidualFNN; returns the step that holds the hidden vectors."""
    size = plan.hidden_dim
    rows, top = padded_rows(size), min(high, size)
    packed = packed_weights(plan, dtype)
    context = step_at(plan, plan.context_step, padded_rows(plan.context_dim), dtype)
    stream = step_at(plan, plan.first, rows, dtype)
    normed = step_at(plan, plan.second, rows, dtype)
    fetch(plan, stream, history_of_layer(plan, plan.layers, 0, dtype), low, high, t)
    for row in range(low, high, PANEL):
        start = layer_start(plan, 0) + row * plan.context_dim
        multiply(stream, row, packed, start, context, plan.context_dim, width)
    for layer in range(1, plan.num_layers + 1):
        keep(plan, history_of_layer(plan, plan.layers, layer - 1, dtype), stream, low, high, t)
        note_moments(plan, stream, low, top, member, dtype)
        meet(plan)
        mean, inverse = merge_moments(plan, layer, size, member, t, dtype)
        normalize(plan, layer, normed, stream, low, high, mean, inverse, dtype)
        if layer == plan.num_layers:
            break
        rectify(plan, normed, low, high, layer - 1, t, dtype)
        keep(plan, history_of_layer(plan, plan.rectified, layer, dtype), normed, low, high, t)
        meet(plan)
        bias_start = layer_bias_start(plan, layer)
        for row in range(low, high, PANEL):
            for r in range(row, row + PANEL):
                value = row_of(stream, r, 0, plan.lanes)
                for b in range(plan.lanes):
                    value[b] += packed[bias_start + r]
            start = layer_start(plan, layer) + row * size
            multiply(stream, row, packed, start, normed, size, width)
    keep(plan, history_at(plan, plan.hidden, rows, dtype), normed, low, high, t)
    meet(plan)
    return normed


@compiled
def gate(plan, hidden, low, high, width, t, dtype):
    """The head and the gating; fills this thread's rows of the update."""
    size, lanes = plan.hidden_dim, plan.lanes
    rows = padded_rows(plan.context_dim)
    packed = packed_weights(plan, dtype)
    head = step_at(plan, plan.head_step, plan.num_parts * rows, dtype)
    for row in range(low, high, PANEL):
        for part in range(plan.num_parts):
            fill(head, part * rows + row, packed, head_bias_start(plan, part) - part * rows)
            start = head_start(plan, part) + row * size
            multiply(head, part * rows + row, packed, start, hidden, size, width)
    context = step_at(plan, plan.context_step, rows, dtype)
    update = step_at(plan, plan.update_step, rows, dtype)
    one = dtype(1)
    for row in range(low, high):
        old, new = row_of(context, row, 0, lanes), row_of(update, row, 0, lanes)
        delta = row_of(head, row, 0, lanes)
        if plan.is_gated:
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
    history = history_at(plan, plan.head, plan.num_parts * rows, dtype)
    for part in range(plan.num_parts):
        keep(plan, history, head, part * rows + low, part * rows + high, t)
    keep(plan, history_at(plan, plan.update, rows, dtype), update, low, high, t)


@compiled
def finish(plan, low, high, member, t, dtype):
    """Norm, clip and padding; fills this thread's rows of the next context."""
    size, lanes = plan.context_dim, plan.lanes
    rows = padded_rows(size)
    update = step_at(plan, plan.update_step, rows, dtype)
    context = step_at(plan, plan.context_step, rows, dtype)
    if plan.is_normed:
        note_moments(plan, update, low, min(high, size), member, dtype)
        meet(plan)
        mean, inverse = merge_moments(plan, 0, size, member, t, dtype)
        normalize(plan, 0, update, update, low, high, mean, inverse, dtype)
    for row in range(low, high):
        beyond = row_of(update, row, plan.batch_size, lanes - plan.batch_size)
        for b in range(lanes - plan.batch_size):
            beyond[b] = dtype(0)  # or it would grow, a sequence that nobody ever resets
    if plan.is_clipped:
        keep(plan, history_at(plan, plan.unclipped, rows, dtype), update, low, high, t)
        limit = dtype(plan.clip)
        for row in range(low, high):
            value = row_of(update, row, 0, lanes)
            for b in range(lanes):
                value[b] = min(max(value[b], -limit), limit)
    if plan.has_pad:
        for b in range(plan.batch_size):
            if is_flagged(plan, plan.pad, t, b):
                for row in range(low, high):
                    update[row, b] = context[row, b]
    contexts = array_at(plan.contexts, rows, plan.stride + lanes, dtype)
    keep(plan, contexts, update, low, high, t + 1)
    keep(plan, context, update, low, high, 0)
    if t + 1 < plan.num_steps:
        reset(plan, context, low, high, t + 1, dtype)


@njit(error_model="numpy", inline="always")
def forward(plan, dtype):
    member = fetch_add(plan.sync)
    h_low, h_high = share(padded_rows(plan.hidden_dim), member, plan.num_threads)
    rows = padded_rows(plan.context_dim)
    c_low, c_high = share(rows, member, plan.num_threads)
    widths = carray(pointer(plan.widths), plan.num_steps, np.int64)
    context = step_at(plan, plan.context_step, rows, dtype)
    contexts = array_at(plan.contexts, rows, plan.stride + plan.lanes, dtype)
    if plan.num_packings:
        pack(plan, member, dtype)
    fetch(plan, context, contexts, c_low, c_high, 0)
    reset(plan, context, c_low, c_high, 0, dtype)
    meet(plan)
    for t in range(plan.num_steps):
        if plan.is_residual:
            hidden = residual_forward(plan, h_low, h_high, widths[t], member, t, dtype)
        else:
            hidden = plain_forward(plan, h_low, h_high, widths[t], member, t, dtype)
        gate(plan, hidden, c_low, c_high, widths[t], t, dtype)
        finish(plan, c_low, c_high, member, t, dtype)
        meet(plan)
