"""Tokens of a recurrent model drawn in native code: step, output layer and draw of many tokens.

One call draws a block of tokens for all rows, so nothing of Python is left within the loop over
time. `block.TokenBlocks` is what the outside calls. `step` holds the cell's equations and `draw`
the distribution; `packing` lays out the weights in the order in which a step reads them, in blocks
of 64 outputs: a step reads one stretch of memory from its beginning to its end.

Training has native code of its own (`newllm.models.recurrence.native`), with the batch along the
vector registers. Here one row must be fast, so the outputs of a product lie along the registers,
and a block of weights serves all rows before the next one is read.

Shapes: B rows, K tokens of a block, E input, C context, H hidden, N choices (the tokens that may be
drawn).
"""
