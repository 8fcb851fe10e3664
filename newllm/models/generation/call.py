"""What a call of the native code is told: numbers, and where arrays lie."""

import numpy as np

BLOCK = 64  # outputs of a product that are computed together
ALIGNMENT = 16  # elements; each part of the packed weights starts at a multiple

CELL = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("input_dim", "context_dim", "hidden_dim", "num_layers", "num_parts"),
            *("is_residual", "is_normed", "is_clipped"),
            *("inputs", "stride"),  # [B, stride]: the input, then the context
        )
    ]
    + [("clip", np.float64)]
)
CALL = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("num_tokens", "num_rows", "num_cells", "embedding_dim", "num_choices"),
            *("hidden_stride", "head_stride", "logits_stride"),
            *("is_endless", "top_k"),  # top_k = 0: all
            *("cells", "weights", "num_weights", "embedding", "num_embeddings", "choices"),
            *("first", "second", "head", "logits"),  # scratch for a step of all rows
            *("uniforms", "seen", "is_done", "unread", "drawn", "num_drawn", "is_finite"),
        )
    ]
    + [(name, np.float64) for name in ("temperature", "top_p", "min_p", "repetition_penalty")]
)


def padded(num_outputs: int) -> int:
    """Columns that the outputs of a product take."""
    return -(-num_outputs // BLOCK) * BLOCK
