"""The context cell over a segment of steps, forward and backward, as native code.

Numba compiles it for the processor at hand, once, and keeps the result. What makes it fast:

- One call takes all steps, so nothing of Python or autograd is left within the loop over time.
- A weight matrix is packed into panels of 16 rows, each in the order in which it is read; a tile of
  the product stays in registers while a whole panel runs past it.
- The threads are those of torch's own pool, which are awake anyway. They share the rows of every
  layer and meet after it.

`launch.run` is what the outside calls, with the numbers and addresses that `call` names. `forward`
and `backward` read like the cell's equations; they rest on `norm`, `packing`, `arrays`, `team` and
`tile`.

Activations are feature-major: a step of something is [N, W], a history all its steps [N, T * W],
with the batch along the vector registers. N is padded to whole panels and B to quarters of a vector
(W lanes). Padding rows may hold anything, for no product or norm reads them; padding lanes are
finite, start each step from a context of zero, and have no gradient. Every thread runs all of it,
as `member`, for its own rows `low` to `high`.

Shapes: B batch, W lanes, T steps of a segment, C context, H hidden, L layers, P parts of the head
(delta, and with gates also forget and input), N any width.
"""
