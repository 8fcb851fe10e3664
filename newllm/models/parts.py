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

    Raises:
        ValueError: a part has one number, which LayerNorm would make constant.
    """

    def __init__(
        self, context_dim: int, num_parts: int, normalization: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.sizes = even_sizes(context_dim, num_parts)
        self.parts = nn.ModuleList(map(normalization, self.sizes))
        for size, part in zip(self.sizes, self.parts, strict=True):
            check_not_constant(context_dim, size, part)
        self.kind = type(self.parts[0])
        bits = [part.bits for part in self.parts if isinstance(part, Quantized)]
        self.bits = sum(bits) if bits else None

    def forward(self, context_BC: Tensor) -> Tensor:
        """Normalize a context."""
        parts = zip(self.parts, context_BC.split(self.sizes, dim=-1), strict=True)
        return torch.cat([normalize(part) for normalize, part in parts], dim=-1)


def check_not_constant(context_dim: int, width: int, normalization: nn.Module) -> None:
    """Check that a context, or a part of one, can hold something.

    Args:
        context_dim: of the whole context, for the message.
        width: of what is normalized.
        normalization: its normalization.

    Raises:
        ValueError: LayerNorm takes the mean from a single number, which leaves nothing.
    """
    if width == 1 and isinstance(normalization, nn.LayerNorm):
        raise ValueError(
            f"model.context_dim={context_dim}: LayerNorm leaves nothing of a context, or part of "
            "one, that has one number; raise it or set normalization=none"
        )


def even_sizes(width: int, num_parts: int) -> list[int]:
    """Widths of parts that differ by at most one, the wider ones first."""
    return [(width + num_parts - 1 - part) // num_parts for part in range(num_parts)]
