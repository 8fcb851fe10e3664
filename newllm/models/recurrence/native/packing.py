"""Weights in the order in which they are read: where each starts, and the packing itself."""

import numpy as np
from numba import carray

from newllm.models.recurrence.native.arrays import array_at, line, padded_rows, pointer
from newllm.models.recurrence.native.call import PACKING, PANEL
from newllm.models.recurrence.native.team import share
from newllm.models.recurrence.native.tile import compiled

# The packed arrays in order: the projection's half for the context, the other layers, the parts of
# the head; biases and the weights of norms; and, for the way back, the matrices again, transposed.


@compiled
def layer_start(call, layer):
    """Where the packed weights of a layer start."""
    hidden = padded_rows(call.hidden_dim)
    if layer == 0:
        return 0
    return hidden * call.context_dim + (layer - 1) * hidden * call.hidden_dim


@compiled
def head_start(call, part):
    head = padded_rows(call.context_dim) * call.hidden_dim
    return layer_start(call, call.num_layers) + part * head


@compiled
def back_layer_start(call, layer):
    """Where the packed transposed weights of a layer start."""
    start = norm_start(call, call.num_layers + 1)
    if layer == 0:
        return start
    start += padded_rows(call.context_dim) * call.hidden_dim
    return start + (layer - 1) * padded_rows(call.hidden_dim) * call.hidden_dim


@compiled
def back_head_start(call, part):
    head = padded_rows(call.hidden_dim) * call.context_dim
    return back_layer_start(call, call.num_layers) + part * head


@compiled
def layer_bias_start(call, layer):
    """Where the bias of a layer behind the projection starts."""
    return head_start(call, call.num_parts) + (layer - 1) * padded_rows(call.hidden_dim)


@compiled
def head_bias_start(call, part):
    return layer_bias_start(call, call.num_layers) + part * padded_rows(call.context_dim)


@compiled
def norm_start(call, norm):
    """Where weight and bias of a norm start; norm 0 is that of the context, L the FNN's last."""
    start = head_bias_start(call, call.num_parts)
    if norm == 0:
        return start
    return start + 2 * padded_rows(call.context_dim) + (norm - 1) * 2 * padded_rows(call.hidden_dim)


@compiled
def packed_size(call):
    return back_head_start(call, call.num_parts)


@compiled
def packed_weights(call, dtype):
    return carray(pointer(call.packed), packed_size(call), dtype)


@compiled
def pack(call, member, dtype):
    """Pack the matrices of the table at `call.packing`; see `PACKING`."""
    packed = packed_weights(call, dtype)
    table = array_at(call.packing, call.num_packings, len(PACKING), np.int64)
    for entry in range(call.num_packings):
        source, row_stride, column_stride, num_rows, depth, target, fill = table[entry]
        size = (num_rows - 1) * row_stride + (depth - 1) * column_stride + 1
        matrix = carray(pointer(source), size, dtype)
        low, high = share(padded_rows(num_rows), member, call.num_threads)
        for first in range(low, high, PANEL):
            panel = line(packed, target + first * depth, PANEL * depth)
            rows = min(PANEL, num_rows - first)
            if rows < PANEL:
                panel[:] = dtype(0)
            if source == 0:
                panel[:rows] = dtype(fill)
            elif row_stride == 1:
                for k in range(depth):
                    from_ = line(matrix, first + k * column_stride, rows)
                    to = line(panel, k * PANEL, rows)
                    for r in range(rows):
                        to[r] = from_[r]
            else:  # in blocks, so that what is written stays in the nearest cache
                for block in range(0, depth, PANEL):
                    width = min(PANEL, depth - block)
                    for r in range(rows):
                        from_ = line(matrix, (first + r) * row_stride + block, width)
                        to = line(panel, block * PANEL + r, width * PANEL - r)
                        for k in range(width):
                            to[k * PANEL] = from_[k]
