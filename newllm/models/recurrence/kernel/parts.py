"""What both kernels are made of. Names of shapes as in the package; R is a block of rows."""

import triton
import triton.language as tl

PAD, RESET = tl.constexpr(1), tl.constexpr(2)  # bits of the flags of a token
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def columns_of(heads: tl.constexpr, width: tl.constexpr, head_dim, num_columns):
    """The column in memory of each of heads * width columns, `num_columns` where there is none."""
    column = tl.arange(0, heads * width)
    head, place = column // width, column % width
    return tl.where(place < head_dim, head * head_dim + place, num_columns)


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
def carries(
    pointer, number: tl.constexpr, heads: tl.constexpr, num_heads, head_dim, outputs, inputs
):
    """A tuple of weights of all heads; indices are [1, K, 1] and [1, 1, K], in either order."""
    head = tl.arange(0, heads)[:, None, None]
    inside = (head < num_heads) & (outputs < head_dim) & (inputs < head_dim)
    loaded = ()
    for index in tl.static_range(number):
        own = pointer + (index * num_heads + head) * head_dim * head_dim
        weight = tl.load(own + outputs * head_dim + inputs, mask=inside, other=0.0)
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
def product_by_head(activations, weight, precision: tl.constexpr):
    """Each head of the activations times its own weight [heads, width, width]."""
    heads: tl.constexpr = weight.shape[0]
    shape: tl.constexpr = activations.shape
    parts = tl.reshape(activations, (shape[0], heads, shape[1] // heads))
    parts = product(tl.permute(parts, (1, 0, 2)), weight, precision)
    return tl.reshape(tl.permute(parts, (1, 0, 2)), shape)


@triton.jit
def rectified(values):
    """ReLU, which keeps NaN."""
    return tl.where(values <= 0, 0.0, values)


@triton.jit
def mean(values, heads: tl.constexpr, head_dim):
    """The mean of each head of a row, in each of its columns; a single column for one head."""
    if heads == 1:
        means = tl.sum(values, 1, keep_dims=True) / head_dim
    else:
        parts = tl.reshape(values, (values.shape[0], heads, values.shape[1] // heads))
        means = tl.sum(parts, 2, keep_dims=True) / head_dim
        means = tl.reshape(tl.broadcast_to(means, parts.shape), values.shape)
    return means


@triton.jit
def standardized(values, columns, width, epsilon, heads: tl.constexpr, head_dim):
    """Mean 0 and variance 1 in each head of a row, and 1 over the standard deviation."""
    centred = tl.where(columns < width, values - mean(values, heads, head_dim), 0.0)
    inverse = 1 / tl.sqrt(mean(centred * centred, heads, head_dim) + epsilon)
    return centred * inverse, inverse


@triton.jit
def through_norm(grad, standard, inverse, scale, columns, width, heads: tl.constexpr, head_dim):
    """The gradient of what a LayerNorm reads, from that of what it gives."""
    grad *= scale
    slope = mean(grad * standard, heads, head_dim)
    grad -= mean(grad, heads, head_dim) + standard * slope
    return tl.where(columns < width, inverse * grad, 0.0)
