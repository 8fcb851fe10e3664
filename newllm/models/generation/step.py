"""A token read by all rows: the cells' equations and the output layer.

The functions that read weights take the place where theirs start, and return where the next ones
do, so that a step walks through all weights in order.
"""

import math

import numpy as np
from numba import carray

from newllm.data.tokenizer import PAD
from newllm.models.generation.call import ALIGNMENT, BLOCK, CELL, padded
from newllm.models.generation.packing import norm_length
from newllm.models.recurrence.native.arrays import array_at, exponential, line, pointer, row_of
from newllm.models.recurrence.native.call import VECTOR_BYTES
from newllm.models.recurrence.native.tile import compiled, compiler, tile

# Sums over a vector may be taken in any order, or they would not be vector code.
summed = compiler(fastmath={"reassoc", "contract", "nsz"})
NUM_VECTORS = BLOCK * 4 // VECTOR_BYTES
MANY, _accumulate_many = tile(NUM_VECTORS, VECTOR_BYTES)
_, _accumulate_one = tile(NUM_VECTORS, VECTOR_BYTES, most_rows=1)

padded_outputs = compiled(padded)
length_of_norm = compiled(norm_length)


@compiled
def scratch_of(call, address, stride):
    return array_at(address, call.num_rows, stride, np.float32)


@compiled
def linear(weights, start, y, column, x, depth, num_outputs, adds):
    """Set y[:, column:], or add to it, the linear layer of x."""
    num_rows, y_stride, x_stride = y.shape[0], y.shape[1], x.shape[1]
    num_columns = padded_outputs(num_outputs)
    bias = line(weights, start, num_columns)
    for row in range(num_rows):
        target = row_of(y, row, column, num_columns)
        for n in range(num_columns):
            target[n] = target[n] + bias[n] if adds else bias[n]
    start += num_columns
    for block in range(0, num_columns, BLOCK):
        row = 0
        while row + MANY <= num_rows:
            at = row * y_stride + column + block
            _accumulate_many(
                y, at, y_stride, x, row * x_stride, x_stride, 1, weights, start, BLOCK, depth
            )
            row += MANY
        while row < num_rows:
            at = row * y_stride + column + block
            _accumulate_one(
                y, at, y_stride, x, row * x_stride, x_stride, 1, weights, start, BLOCK, depth
            )
            row += 1
        start += BLOCK * depth
    return start


@summed
def moments(values, size, epsilon):
    """Mean and inverse standard deviation."""
    mean = np.float32(0)
    for n in range(size):
        mean += values[n]
    mean /= np.float32(size)
    squares = np.float32(0)
    for n in range(size):
        squares += (values[n] - mean) * (values[n] - mean)
    variance = squares / np.float32(size)
    return mean, np.float32(1) / np.float32(math.sqrt(variance + epsilon))


@compiled
def normalize(weights, start, y, x, size):
    """Layer normalization of the rows of x, which may be y."""
    epsilon, length = weights[start], length_of_norm(size)
    weight = line(weights, start + ALIGNMENT, size)
    bias = line(weights, start + ALIGNMENT + length, size)
    for row in range(y.shape[0]):
        target, source = row_of(y, row, 0, size), row_of(x, row, 0, size)
        mean, inverse = moments(source, size, epsilon)
        for n in range(size):
            target[n] = (source[n] - mean) * inverse * weight[n] + bias[n]
    return start + ALIGNMENT + 2 * length


@compiled
def rectify(y, size):
    zero = np.float32(0)
    for row in range(y.shape[0]):
        value = row_of(y, row, 0, size)
        for n in range(size):
            value[n] = zero if value[n] < zero else value[n]  # no number stays no number


@compiled
def plain_step(cell, weights, start, inputs, first, second):
    """PlainFNN; the hidden vectors are in the first of the arrays that it returns."""
    source, depth = inputs, cell.input_dim + cell.context_dim
    target, spare = first, second
    for _ in range(cell.num_layers):
        start = linear(weights, start, target, 0, source, depth, cell.hidden_dim, False)
        rectify(target, cell.hidden_dim)
        source, depth = target, cell.hidden_dim
        target, spare = spare, target
    return spare, start


@compiled
def residual_step(cell, weights, start, inputs, stream, normed):
    """ResidualFNN; the hidden vectors are in the first of the arrays that it returns."""
    size, depth = cell.hidden_dim, cell.input_dim + cell.context_dim
    start = linear(weights, start, stream, 0, inputs, depth, size, False)
    for _ in range(cell.num_layers - 1):
        start = normalize(weights, start, normed, stream, size)
        rectify(normed, size)
        start = linear(weights, start, stream, 0, normed, size, size, True)
    return normed, normalize(weights, start, normed, stream, size)


@compiled
def gate(cell, head, update, contexts):
    """The update of the context from the heads."""
    size, part = cell.context_dim, padded_outputs(cell.context_dim)
    one = np.float32(1)
    for row in range(head.shape[0]):
        new, old = row_of(update, row, 0, size), row_of(contexts, row, cell.input_dim, size)
        delta = row_of(head, row, 0, size)
        if cell.num_parts == 1:
            for c in range(size):
                new[c] = old[c] + delta[c]
        else:
            forget, input_ = row_of(head, row, part, size), row_of(head, row, 2 * part, size)
            for c in range(size):
                forget[c] = one / (one + exponential(-forget[c]))
            for c in range(size):
                input_[c] = one / (one + exponential(-input_[c]))
            for c in range(size):
                new[c] = forget[c] * old[c] + input_[c] * delta[c]


@compiled
def read_by_cell(call, cell, weights, start, unread):
    """Let a cell read its input; `<PAD>` leaves the context of its row as it was."""
    inputs = scratch_of(call, cell.inputs, cell.stride)
    first = scratch_of(call, call.first, call.hidden_stride)
    second = scratch_of(call, call.second, call.hidden_stride)
    if cell.is_residual:
        hidden, start = residual_step(cell, weights, start, inputs, first, second)
    else:
        hidden, start = plain_step(cell, weights, start, inputs, first, second)
    size, part = cell.context_dim, padded_outputs(cell.context_dim)
    head = scratch_of(call, call.head, call.head_stride)
    for index in range(cell.num_parts):
        column = index * part
        start = linear(weights, start, head, column, hidden, cell.hidden_dim, size, False)
    gate(cell, head, head, inputs)
    if cell.is_normed:
        start = normalize(weights, start, head, head, size)
    limit = np.float32(cell.clip)
    for row in range(call.num_rows):
        if unread[row] != PAD:
            new, context = row_of(head, row, 0, size), row_of(inputs, row, cell.input_dim, size)
            for c in range(size):
                context[c] = new[c]
            if cell.is_clipped:
                for c in range(size):
                    context[c] = -limit if context[c] < -limit else context[c]
                    context[c] = limit if context[c] > limit else context[c]
    return hidden, start


@compiled
def copy_rows(target, source, size):
    for row in range(target.shape[0]):
        to, from_ = row_of(target, row, 0, size), row_of(source, row, 0, size)
        for n in range(size):
            to[n] = from_[n]


@compiled
def read(call, unread):
    """Read a token in each row, and compute the logits of the choices."""
    weights = carray(pointer(call.weights), call.num_weights, np.float32)
    cells = carray(pointer(call.cells), call.num_cells, CELL)
    embedding = array_at(call.embedding, call.num_embeddings, call.embedding_dim, np.float32)
    inputs = scratch_of(call, cells[0].inputs, cells[0].stride)
    for row in range(call.num_rows):
        to = row_of(inputs, row, 0, call.embedding_dim)
        from_ = row_of(embedding, unread[row], 0, call.embedding_dim)
        for e in range(call.embedding_dim):
            to[e] = from_[e]
    hidden, start = read_by_cell(call, cells[0], weights, 0, unread)
    for index in range(1, call.num_cells):
        cell = cells[index]
        copy_rows(scratch_of(call, cell.inputs, cell.stride), hidden, cell.input_dim)
        hidden, start = read_by_cell(call, cell, weights, start, unread)
    depth = cells[call.num_cells - 1].hidden_dim
    logits = scratch_of(call, call.logits, call.logits_stride)
    linear(weights, start, logits, 0, hidden, depth, call.num_choices, False)
    return logits
