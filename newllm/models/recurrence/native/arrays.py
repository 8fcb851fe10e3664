"""Arrays at addresses, in forms that LLVM turns into vector code.

A loop over the elements of a `line` does become vector code; one over the second index of a matrix
does not, since numba must allow for negative indices.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic, overload

from newllm.models.recurrence.native.call import padded
from newllm.models.recurrence.native.tile import compiled

padded_rows = compiled(padded)


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@compiled
def array_at(address, num_rows, num_columns, dtype):
    return carray(pointer(address), (num_rows, num_columns), dtype)


@intrinsic
def place(typing_context: Any, array: Any, index: Any) -> Any:
    """A pointer to an element of an array in C order, counted as if it had one dimension."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return types.CPointer(array.dtype)(array, types.intp), generate


@compiled
def line(array, start, size):
    """Elements of an array in C order as a vector; loops over one become vector code."""
    return carray(place(array, start), size)


@compiled
def row_of(array, row, start, size):
    """Elements of a row of a matrix as a vector."""
    return line(array, row * array.shape[1] + start, size)


@compiled
def history_at(call, address, num_rows, dtype):
    """All steps of something, [num_rows, stride]; step t starts at column t * W."""
    return array_at(address, num_rows, call.stride, dtype)


@compiled
def history_of_layer(call, table, layer, dtype):
    """The history of a layer, by a table of addresses."""
    addresses = carray(pointer(table), call.num_layers, np.int64)
    return history_at(call, addresses[layer], padded_rows(call.hidden_dim), dtype)


@compiled
def step_at(call, address, num_rows, dtype):
    """One step of something, [num_rows, W]."""
    return array_at(address, num_rows, call.lanes, dtype)


@compiled
def is_flagged(call, address, t, b):
    """A flag [T, B] of bytes."""
    return array_at(address, call.num_steps, call.batch_size, np.uint8)[t, b] != 0


@compiled
def keep(call, history, step, low, high, t):
    """Copy rows of a step into a history."""
    for row in range(low, high):
        target = row_of(history, row, t * call.lanes, call.lanes)
        source = row_of(step, row, 0, call.lanes)
        for b in range(call.lanes):
            target[b] = source[b]


@compiled
def fetch(call, step, history, low, high, t):
    """Copy rows of a history into a step."""
    for row in range(low, high):
        target = row_of(step, row, 0, call.lanes)
        source = row_of(history, row, t * call.lanes, call.lanes)
        for b in range(call.lanes):
            target[b] = source[b]


@compiled
def reset(call, step, low, high, t, dtype):
    if call.has_reset:
        for b in range(call.batch_size):
            if is_flagged(call, call.reset, t, b):
                step[low:high, b] = dtype(0)


@intrinsic
def float_from_bits(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def exponential(x):
    """Exponential function, of floats in a form that LLVM turns into vector code (Cephes)."""
    return math.exp(x)


@overload(exponential)
def _exponential(x):
    if x != types.float32:
        return lambda x: math.exp(x)
    f = np.float32

    def exp_of_float(x):
        x = min(max(x, f(-87.0)), f(87.0))
        power = np.floor(x * f(1.44269504) + f(0.5))
        rest = x - power * f(0.693359375) - power * f(-2.12194440e-4)
        series = f(1.9875691500e-4)
        series = series * rest + f(1.3981999507e-3)
        series = series * rest + f(8.3334519073e-3)
        series = series * rest + f(4.1665795894e-2)
        series = series * rest + f(1.6666665459e-1)
        series = series * rest + f(5.0000001201e-1)
        series = series * rest * rest + rest + f(1)
        return series * float_from_bits(np.int32((np.int32(power) + np.int32(127)) << np.int32(23)))

    return exp_of_float
