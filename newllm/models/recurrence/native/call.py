"""What a call of the native code is told: numbers, and where arrays lie."""

import numpy as np
import torch

PANEL = 16  # rows of a weight matrix that are read together
VECTOR_BYTES = 64  # lanes that are multiplied at once

FLAGS = ("is_residual", "is_gated", "is_normed", "is_clipped", "has_pad", "has_reset", "drops")
SIZES = (
    *("num_threads", "num_steps", "batch_size", "lanes", "stride"),
    *("context_dim", "hidden_dim", "num_layers", "num_parts", "num_packings", "dropped"),
)
BACKWARD = (
    *("hidden_grads", "context_grads", "layer_grads", "head_grads", "norm_grads", "context_grad"),
)  # told on the way back only
# Where arrays lie: scratch for one step, what is read, and what is kept for the way back. `layers`,
# `rectified` and `layer_grads` are tables with the address of a history for each layer.
ADDRESSES = (
    *("sync", "first", "second", "head_step", "update_step", "context_step"),
    *("partials", "moments", "packing", "packed", "draws", "pad", "reset", "widths", "epsilons"),
    *("contexts", "layers", "rectified", "hidden", "head", "update", "unclipped", "statistics"),
    *BACKWARD,
)
# All that a call knows: numbers and addresses, by name.
CALL = np.dtype(
    [(name, np.int64) for name in (*FLAGS, *SIZES, *ADDRESSES)]
    + [("scale", np.float64), ("clip", np.float64)]
)
# One matrix to pack: P[panel, k, r] = source[(panel * PANEL + r) * row_stride + k * column_stride];
# where `source` is 0, `fill` everywhere. A vector is a matrix of depth 1. One of the strides is 1.
PACKING = ("source", "row_stride", "column_stride", "num_rows", "depth", "target", "fill")


def padded(width: int) -> int:
    """Rows that an array of so many features takes."""
    return -(-width // PANEL) * PANEL


def lanes_of(batch_size: int, dtype: torch.dtype) -> int:
    """Columns that a step of so many rows takes: whole quarters of a vector."""
    quarter = VECTOR_BYTES // dtype.itemsize // 4
    return -(-batch_size // quarter) * quarter
