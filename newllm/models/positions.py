"""Where a token stands in its sequence, and two ways to tell a model.

Shapes: B batch, T time (tokens), N attention heads, D width, in attention of a head.
"""

import torch
from torch import Tensor, nn

from newllm.models.layer import Layer, State, real_tokens, zeros


def token_positions(
    real_BT: Tensor, start_B: Tensor, reset_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Count the real tokens before each token since its row's last reset.

    Args:
        real_BT: bool, false at `<PAD>`, which takes no position.
        start_B: positions already taken before this chunk.
        reset_BT: bool, true where counting restarts at 0; None restarts nowhere.

    Returns:
        The position of each token [B, T] and the position of the token to come [B], as int64.
    """
    before_BT = real_BT.cumsum(1) - real_BT.long()
    origin_BT = -start_B[:, None]
    if reset_BT is not None:
        # `before` never falls, so the running maximum is its value at the latest reset.
        origin_BT = torch.where(reset_BT, before_BT, origin_BT).cummax(1).values
    position_BT = before_BT - origin_BT
    return position_BT, position_BT[:, -1] + real_BT[:, -1]


class LearnedPositions(Layer):
    """Adds a vector of its own for each position below `max_length`; the state counts [B]."""

    table: nn.Embedding

    def __init__(self, input_dim: int, max_length: int) -> None:
        super().__init__(input_dim, input_dim)
        self.max_length = max_length
        self.table = nn.Embedding(max_length, input_dim)

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """As `Layer` says; a real token beyond the table raises ValueError."""
        (start_B,) = self.initial_state(x_BTD.shape[0]) if state is None else state
        real_BT = real_tokens(x_BTD, pad_BT)
        position_BT, next_B = token_positions(real_BT, start_B, reset_BT)
        last = (position_BT * real_BT).max()
        if torch.compiler.is_exporting():  # the exported model checks it by itself
            torch._check(last.item() < self.max_length)
        elif last >= self.max_length:
            raise ValueError(
                f"model.max_length={self.max_length} is too short for {int(last) + 1} tokens; "
                "raise it or set model.positions=none"
            )
        # Padding after the last position that exists still needs some row to look up.
        return x_BTD + self.table(position_BT.clamp(max=self.max_length - 1)), (next_B,)

    def initial_state(self, batch_size: int) -> State:
        """Position 0 for all rows [B], as int64."""
        return (zeros(self, batch_size).long(),)

    @property
    def description(self) -> str:
        """A word that a description ends with."""
        return "positions"


class RotaryPositions(nn.Module):
    """Angles that rotate queries and keys, so that attention sees distances (Su et al. 2021)."""

    frequency_D: Tensor

    def __init__(self, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        exponent_D = torch.arange(0, head_dim, 2) / head_dim
        self.register_buffer("frequency_D", base**-exponent_D, persistent=False)

    def forward(self, position_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, 1, T, D/2] for `rotate`; the 1 stands for all heads."""
        angle_B1TD = position_BT[:, None, :, None] * self.frequency_D
        return angle_B1TD.cos(), angle_B1TD.sin()


def rotate(vectors_BNTD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (one element of the first half, one of the second) by its angle."""
    cos, sin = rotation
    first, second = vectors_BNTD.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
