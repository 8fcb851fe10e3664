"""The minimal gated recurrent unit, whose gates do not read the state (Feng et al. 2024).

Shapes: B batch, T time (tokens), D input, L layers, H hidden, F feedforward.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.config.faults import raise_faults, too_small
from newllm.models.layer import Layer, State, real_tokens, zeros
from newllm.models.settings import dropout_faults


class MinGRUStep(nn.Module):
    """state_t = (1 - z_t) * state_{t-1} + z_t * candidate_t, both linear in the input."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_dim, hidden_dim)
        self.candidate = nn.Linear(hidden_dim, hidden_dim)

    def forward(
        self, inputs_BTH: Tensor, state_BH: Tensor, real_BT1: Tensor, reset_BT1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The states after every token [B, T, H], and the last [B, H].

        `real_BT1` is 0 at padding, `reset_BT1` is 1 where the state is forgotten before the token.
        """
        gate_BTH = torch.sigmoid(self.gate(inputs_BTH)) * real_BT1
        keep_BTH = (1 - gate_BTH) * (1 - reset_BT1)
        written_BTH = gate_BTH * self.candidate(inputs_BTH)
        states = []
        for keep_BH, written_BH in zip(keep_BTH.unbind(1), written_BTH.unbind(1), strict=True):
            state_BH = torch.addcmul(written_BH, keep_BH, state_BH)
            states.append(state_BH)
        return torch.stack(states, dim=1), state_BH


class MinGRU(Layer):
    """Blocks of a minGRU and a feed-forward network, each with pre-normalization and a residual.

    The state is one tensor [B, L, H].

    Args:
        input_dim: D.
        hidden_dim: H.
        num_layers: L.
        feedforward_dim: F.
        dropout: probability before each addition.

    Raises:
        ValueError: a setting is impossible; one line for each.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        num_layers: int,
        feedforward_dim: int,
        dropout: float = 0.0,
    ) -> None:
        sizes = too_small(
            "model",
            1,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            feedforward_dim=feedforward_dim,
        )
        raise_faults([*sizes, *dropout_faults(dropout=dropout)])
        super().__init__(input_dim, hidden_dim)
        self.feedforward_dim = feedforward_dim
        self.input = nn.Linear(input_dim, hidden_dim)
        layers = range(num_layers)
        self.recurrent_norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in layers)
        self.recurrent = nn.ModuleList(MinGRUStep(hidden_dim) for _ in layers)
        self.feedforward_norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in layers)
        self.feedforward = nn.ModuleList(
            nn.Sequential(
                nn.Linear(hidden_dim, feedforward_dim),
                nn.ReLU(),
                nn.Linear(feedforward_dim, hidden_dim),
            )
            for _ in layers
        )
        self.dropout = dropout
        self.final_norm = nn.LayerNorm(hidden_dim)

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read a chunk."""
        (state_BLH,) = self.initial_state(x_BTD.shape[0]) if state is None else state
        hidden_BTH = self.input(x_BTD)
        real_BT = real_tokens(x_BTD, pad_BT)
        reset_BT = torch.zeros_like(real_BT) if reset_BT is None else reset_BT
        real_BT1, reset_BT1 = (
            flags.to(hidden_BTH.dtype)[..., None] for flags in (real_BT, reset_BT)
        )
        finals = []
        for depth, layer in enumerate(self.recurrent):
            normed_BTH = self.recurrent_norms[depth](hidden_BTH)
            read_BTH, final_BH = layer(normed_BTH, state_BLH[:, depth], real_BT1, reset_BT1)
            hidden_BTH = hidden_BTH + F.dropout(read_BTH, self.dropout, self.training)
            fed_BTH = self.feedforward[depth](self.feedforward_norms[depth](hidden_BTH))
            hidden_BTH = hidden_BTH + F.dropout(fed_BTH, self.dropout, self.training)
            finals.append(final_BH)
        return self.final_norm(hidden_BTH), (torch.stack(finals, dim=1),)

    def initial_state(self, batch_size: int) -> State:
        """Zeros [B, L, H]."""
        return (zeros(self, batch_size, len(self.recurrent), self.output_dim),)

    @property
    def description(self) -> str:
        """Such as `mingru E128 H256 L3`, then F if it differs from H."""
        wide = "" if self.feedforward_dim == self.output_dim else f" F{self.feedforward_dim}"
        return f"mingru E{self.input_dim} H{self.output_dim} L{len(self.recurrent)}{wide}"
