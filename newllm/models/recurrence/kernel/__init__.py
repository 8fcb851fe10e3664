"""The context cell over time as one Triton kernel in each direction.

A persistent kernel (Diamos et al. 2016; FlashRNN, Pöppel et al. 2024, arXiv 2412.07752) loops over
time itself and loads the weights once, into the shared memory of the processor that it runs on. A
program takes `weights.ROWS` rows of the batch through all steps. No program waits for another, so
a processor must hold all matrices of the cell that a step multiplies by.

- `forward` and `backward` read like the equations of the cell, and rest on `parts`. What they do
  not know of the cell is done for all tokens at once: the projection of the inputs before, and the
  gradients of inputs and parameters after the kernel (`chunk`).
- Activations and sums are float32; products take the type of the weights that are handed in.
- Columns beyond a width are zero in every activation: weights, biases and scales are loaded as
  zeros there. Rows beyond the batch read zeros and are not written.
- The heads of a context have columns of their own (`parts.columns_of`), so that what each carries
  on by itself is one product for all heads.
- Where the environment variable TRITON_INTERPRET is 1, Triton runs the kernels on a CPU.

Shapes: B batch, T time (tokens), E input, C context, H hidden, L layers of the FNN, D = L - 1 of
them behind the input projection, G Linears of the gating (delta; forget and input gates), N heads
of the context, K = C / N context of a head, I = H or H + K inputs of a Linear of the gating.
"""
