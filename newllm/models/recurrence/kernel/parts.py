"""What both kernels are made of. Names of shapes as in the package; R is a block of rows."""

import triton
import triton.language as tl

PAD, RESET = tl.constexpr(1), tl.constexpr(2)  # bits of the flags of a token
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def matrix(pointer, num_outputs, num_inputs, outputs, inputs):
    """A weight [outputs, inputs], transposed if its indices are handed over as [1, O], [I, 1]."""
    inside = (outputs < num_outputs) & (inputs < num_inputs)
    return tl.load(pointer + outputs * num_inputs + inputs, mask=inside, other=0.0)


@triton.jit
def matrices(pointer, number: tl.constexpr, num_outputs, num_inputs, outputs, inputs):
    """A tuple of weights [number, outputs, inputs]."""
    loaded = ()
    for index in tl.static_range(number):
        own = pointer + index * num_outputs * num_inputs
        weight = matrix(own, num_outputs, num_inputs, outputs, inputs)
        loaded = loaded + (weight,)  # type: ignore[assignment]  # noqa: RUF005  (no unpacking)
    return loaded


@triton.jit
def vectors(pointer, number: tl.constexpr, width, columns):
    """A tuple of rows [1, width] of a matrix [number, width]."""
    loaded = ()
    for index in tl.static_range(number):
        own = pointer + index * width + columns
        vector = tl.load(own, mask=columns < width, other=0.0).to(tl.float32)
        loaded = loaded + (vector,)  # type: ignore[assignment]  # noqa: RUF005  (no unpacking)
    return loaded


@triton.jit
def load(pointer, step, rows, num_rows, columns, width):
    """Rows of a step of a history [steps, B, width], as float32."""
    inside = (rows < num_rows) & (columns < width)
    place = (step * num_rows + rows) * width + columns
    return tl.load(pointer + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store(pointer, value, step, rows, num_rows, columns, width):
    """The inverse of `load`."""
    inside = (rows < num_rows) & (columns < width)
    place = (step * num_rows + rows) * width + columns
    tl.store(pointer + place, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def product(activations, weight, precision: tl.constexpr):
    """Activations times a weight, in the type of the weight, summed in float32."""
    activations = activations.to(weight.dtype)
    if INTERPRETED:  # whose products of bfloat16 are those of the bits
        activations, weight = activations.to(tl.float32), weight.to(tl.float32)
    return tl.dot(activations, weight, input_precision=precision)


@triton.jit
def rectified(values):
    """ReLU, which keeps NaN."""
    return tl.where(values <= 0, 0.0, values)


@triton.jit
def standardized(values, columns, width, epsilon):
    """Mean 0 and variance 1 in each row, and 1 over the standard deviation."""
    centred = tl.where(columns < width, values - tl.sum(values, 1, keep_dims=True) / width, 0.0)
    variance = tl.sum(centred * centred, 1, keep_dims=True) / width
    inverse = 1 / tl.sqrt(variance + epsilon)
    return centred * inverse, inverse


@triton.jit
def through_norm(grad, standard, inverse, scale, columns, width):
    """The gradient of what a LayerNorm reads, from that of what it gives."""
    grad = grad * scale
    mean = tl.sum(grad, 1, keep_dims=True) / width
    slope = tl.sum(grad * standard, 1, keep_dims=True) / width
    return tl.where(columns < width, inverse * (grad - mean - standard * slope), 0.0)
