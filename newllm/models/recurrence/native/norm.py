"""Layer normalization over the rows of a step, which all threads share, and its way back."""

import math

import numpy as np
from numba import carray

from newllm.models.recurrence.native.arrays import (
    array_at,
    history_at,
    padded_rows,
    pointer,
    row_of,
)
from newllm.models.recurrence.native.packing import norm_start, packed_weights
from newllm.models.recurrence.native.team import share
from newllm.models.recurrence.native.tile import compiled


@compiled
def note_moments(call, values, low, high, member, dtype):
    """Note mean and sum of squared deviations of this thread's rows [low, high)."""
    lanes = call.lanes
    partials = array_at(call.partials, 2 * call.num_threads, lanes, dtype)
    mean, squares = (
        row_of(partials, 2 * member, 0, lanes),
        row_of(partials, 2 * member + 1, 0, lanes),
    )
    mean[:] = dtype(0)
    squares[:] = dtype(0)
    if low < high:
        for row in range(low, high):
            value = row_of(values, row, 0, lanes)
            for b in range(lanes):
                mean[b] += value[b]
        count = dtype(high - low)
        for b in range(lanes):
            mean[b] /= count
        for row in range(low, high):
            value = row_of(values, row, 0, lanes)
            for b in range(lanes):
                squares[b] += (value[b] - mean[b]) * (value[b] - mean[b])


@compiled
def merge_moments(call, norm, num_rows, member, t, dtype):
    """Mean and inverse standard deviation [W] from the notes of all threads (Chan et al. 1979)."""
    lanes, threads = call.lanes, call.num_threads
    partials = array_at(call.partials, 2 * threads, lanes, dtype)
    moments = array_at(call.moments, 2 * threads, lanes, dtype)
    mean, inverse = row_of(moments, 2 * member, 0, lanes), row_of(moments, 2 * member + 1, 0, lanes)
    mean[:] = dtype(0)
    inverse[:] = dtype(0)
    seen = 0
    for other in range(threads):
        low, high = share(padded_rows(num_rows), other, threads)
        count = min(high, num_rows) - low
        if count > 0:
            seen += count
            part = dtype(count) / dtype(seen)
            weight = dtype(count) * dtype(seen - count) / dtype(seen)
            other_mean = row_of(partials, 2 * other, 0, lanes)
            other_squares = row_of(partials, 2 * other + 1, 0, lanes)
            for b in range(lanes):
                difference = other_mean[b] - mean[b]
                mean[b] += difference * part
                inverse[b] += other_squares[b] + difference * difference * weight
    epsilon = dtype(carray(pointer(call.epsilons), call.num_layers + 1, np.float64)[norm])
    one = dtype(1)
    for b in range(lanes):
        inverse[b] = one / dtype(math.sqrt(inverse[b] / dtype(num_rows) + epsilon))
    if member == 0:
        kept_mean, kept_inverse = kept_statistics(call, norm, t, dtype)
        kept_mean[:] = mean
        kept_inverse[:] = inverse
    return mean, inverse


@compiled
def kept_statistics(call, norm, t, dtype):
    """Mean and inverse standard deviation [W] that a norm met at a step."""
    history = history_at(call, call.statistics, 2 * (call.num_layers + 1), dtype)
    s = t * call.lanes
    return row_of(history, 2 * norm, s, call.lanes), row_of(history, 2 * norm + 1, s, call.lanes)


@compiled
def normalize(call, norm, y, x, low, high, mean, inverse, dtype):
    """Rows of y from those of x, which may be the same."""
    packed, weights = packed_weights(call, dtype), norm_start(call, norm)
    biases = weights + y.shape[0]
    for row in range(low, high):
        weight, bias = packed[weights + row], packed[biases + row]
        target, source = row_of(y, row, 0, call.lanes), row_of(x, row, 0, call.lanes)
        for b in range(call.lanes):
            target[b] = (source[b] - mean[b]) * inverse[b] * weight + bias


@compiled
def note_norm_grads(call, norm, grads, inputs, low, high, member, t, dtype):
    """Note this thread's part of the two sums over rows that a norm's gradient needs.

    Adds to the gradients of the norm's weight and bias too.
    """
    lanes = call.lanes
    packed, start = packed_weights(call, dtype), norm_start(call, norm)
    context, hidden = padded_rows(call.context_dim), padded_rows(call.hidden_dim)
    rows = context if norm == 0 else hidden
    above = 0 if norm == 0 else 2 * context + (norm - 1) * 2 * hidden
    sums = array_at(call.norm_grads, above + 2 * rows, lanes, dtype)
    mean, inverse = kept_statistics(call, norm, t, dtype)
    partials = array_at(call.partials, 2 * call.num_threads, lanes, dtype)
    plain, along = (
        row_of(partials, 2 * member, 0, lanes),
        row_of(partials, 2 * member + 1, 0, lanes),
    )
    plain[:] = dtype(0)
    along[:] = dtype(0)
    for row in range(low, high):
        weight = packed[start + row]
        grad, value = row_of(grads, row, 0, lanes), row_of(inputs, row, t * lanes, lanes)
        weight_sum = row_of(sums, above + row, 0, lanes)
        bias_sum = row_of(sums, above + rows + row, 0, lanes)
        for b in range(lanes):
            normed = (value[b] - mean[b]) * inverse[b]
            weight_sum[b] += grad[b] * normed
            bias_sum[b] += grad[b]
            plain[b] += grad[b] * weight
            along[b] += grad[b] * weight * normed


@compiled
def norm_backward(call, norm, num_rows, grads, inputs, low, high, member, t, out, adds, dtype):
    """The gradient of a norm's inputs, in or added to this thread's rows of `out`."""
    lanes, threads = call.lanes, call.num_threads
    packed, start = packed_weights(call, dtype), norm_start(call, norm)
    mean, inverse = kept_statistics(call, norm, t, dtype)
    partials = array_at(call.partials, 2 * threads, lanes, dtype)
    moments = array_at(call.moments, 2 * threads, lanes, dtype)
    plain, along = row_of(moments, 2 * member, 0, lanes), row_of(moments, 2 * member + 1, 0, lanes)
    plain[:] = dtype(0)
    along[:] = dtype(0)
    for other in range(threads):
        for b in range(lanes):
            plain[b] += partials[2 * other, b] / dtype(num_rows)
            along[b] += partials[2 * other + 1, b] / dtype(num_rows)
    kept = dtype(1) if adds else dtype(0)
    for row in range(low, high):
        weight = packed[start + row]
        grad, value = row_of(grads, row, 0, lanes), row_of(inputs, row, t * lanes, lanes)
        target = row_of(out, row, 0, lanes)
        for b in range(lanes):
            normed = (value[b] - mean[b]) * inverse[b]
            own = inverse[b] * (grad[b] * weight - plain[b] - along[b] * normed)
            target[b] = kept * target[b] + own
