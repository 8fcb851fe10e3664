"""How a hidden vector changes the context.

Shapes: B batch, C context, H hidden.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Gating(nn.Module, ABC):
    """An update of the context with its weights, built from (hidden_dim, context_dim).

    `name` stands for it in the names of runs.
    """

    name: str

    @abstractmethod
    def forward(self, hidden_BH: Tensor, context_BC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the new context, and the gates [B, C] by name."""


class Additive(Gating):
    """context + delta."""

    name = "additive"

    def __init__(self, hidden_dim: int, context_dim: int) -> None:
        super().__init__()
        self.delta = nn.Linear(hidden_dim, context_dim)

    def forward(self, hidden_BH: Tensor, context_BC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return context_BC + self.delta(hidden_BH), {}


class LSTMGating(Gating):
    """forget * context + input * delta, with gates as in an LSTM."""

    name = "gated"

    def __init__(self, hidden_dim: int, context_dim: int) -> None:
        super().__init__()
        self.delta = nn.Linear(hidden_dim, context_dim)
        self.forget_gate = nn.Linear(hidden_dim, context_dim)
        self.input_gate = nn.Linear(hidden_dim, context_dim)

    def forward(self, hidden_BH: Tensor, context_BC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        forget_BC = torch.sigmoid(self.forget_gate(hidden_BH))
        input_BC = torch.sigmoid(self.input_gate(hidden_BH))
        context_BC = forget_BC * context_BC + input_BC * self.delta(hidden_BH)
        return context_BC, {"forget": forget_BC, "input": input_BC}
