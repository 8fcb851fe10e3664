"""Contexts of a few bits.

Shapes: B batch, C context.
"""

import math

import torch
from torch import Tensor, nn

from newllm.config.faults import raise_faults, too_small


class Quantized(nn.Module):
    """Rounds each number of the context to one of a few levels from -1 to 1, evenly spaced.

    Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505): tanh bounds a number, which
    is then rounded; the gradient passes the rounding as if it were not there. There, an even number
    of levels leaves out one end and is shifted; here, levels are symmetric.

    It stands in the place of a normalization, so that every context that the cell reads is
    quantized, except for the zeros before the first token.

    Args:
        context_dim: C.
        levels: of each number; 1 leaves no context.

    Attributes:
        bits: C log2 levels, the most that a context can hold.
    """

    def __init__(self, context_dim: int, levels: int = 2) -> None:
        raise_faults(too_small("normalization", 1, levels=levels))
        super().__init__()
        self.levels = levels
        self.bits = context_dim * math.log2(levels)

    def forward(self, context_BC: Tensor) -> Tensor:
        """Quantize a context."""
        highest = (self.levels - 1) / 2
        bounded_BC = highest * torch.tanh(context_BC)
        offset = highest % 1  # levels are whole numbers, or halves between them
        rounded_BC = (bounded_BC - offset).round() + offset
        # In this order, the sum is a level to the last digit: nothing passes between the levels.
        quantized_BC = rounded_BC.detach() + (bounded_BC - bounded_BC.detach())
        return quantized_BC / max(highest, 0.5)
