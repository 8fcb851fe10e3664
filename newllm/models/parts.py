"""A context in parts, such as heads or timescales.

Shapes: B batch, C context.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from newllm.models.quantization import Quantized


class PerPart(nn.Module):
    """Normalizes each part of the context by itself.

    Args:
        context_dim: C.
        num_parts: number of parts, whose widths are `even_sizes`.
        normalization: factory of the normalization of a part, from its width.

    Attributes:
        kind: class of these normalizations.
        bits: the most that a context can hold if they quantize it, else None.
    """

    def __init__(
        self, context_dim: int, num_parts: int, normalization: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.sizes = even_sizes(context_dim, num_parts)
        self.parts = nn.ModuleList(map(normalization, self.sizes))
        self.kind = type(self.parts[0])
        bits = [part.bits for part in self.parts if isinstance(part, Quantized)]
        self.bits = sum(bits) if bits else None

    def forward(self, context_BC: Tensor) -> Tensor:
        """Normalize a context."""
        parts = zip(self.parts, context_BC.split(self.sizes, dim=-1), strict=True)
        return torch.cat([normalize(part) for normalize, part in parts], dim=-1)


def even_sizes(width: int, num_parts: int) -> list[int]:
    """Widths of parts that differ by at most one, the wider ones first."""
    return [(width + num_parts - 1 - part) // num_parts for part in range(num_parts)]
