"""A gated shortcut from another context into a context.

Shapes: B batch, C context, H hidden.
"""

import torch
from torch import Tensor, nn


class Shortcut(nn.Module):
    """(1 - gate) * context + gate * other, with gate = sigmoid(W hidden + b).

    The coupled gate of a highway network (Srivastava et al. 2015, arXiv 1505.00387): no context
    grows by it.
    """

    def __init__(self, hidden_dim: int, context_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_dim, context_dim)

    def forward(
        self, hidden_BH: Tensor, context_BC: Tensor, other_BC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The context with what the shortcut brings, and the gate [B, C]."""
        gate_BC = torch.sigmoid(self.gate(hidden_BH))
        return (1 - gate_BC) * context_BC + gate_BC * other_BC, gate_BC
