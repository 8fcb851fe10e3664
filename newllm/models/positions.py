"""Positions of tokens, and two ways to show them to a model: learned vectors and rotations.

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
        start_B: position of the first token.
        reset_BT: bool, true where counting restarts at 0; None means nowhere.

    Returns:
        The position of each token [B, T] and of the next one [B], as int64.
    """
    before_BT = real_BT.cumsum(1) - real_BT.long()
    origin_BT = -start_B[:, None]
    if reset_BT is not None:
        # `before` never falls, so the running maximum is its value at the latest reset.
        origin_BT = torch.where(reset_BT, before_BT, origin_BT).cummax(1).values
    position_BT = before_BT - origin_BT
    return position_BT, position_BT[:, -1] + real_BT[:, -1]


class LearnedPositions(Layer):
    """Adds a learned vector for each position below `max_length`; the state is the next [B]."""

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
        """Read a chunk; a real token beyond the table raises ValueError."""
        (start_B,) = self.initial_state(x_BTD.shape[0]) if state is None else state
        real_BT = real_tokens(x_BTD, pad_BT)
        position_BT, next_B = token_positions(real_BT, start_B, reset_BT)
        last = (position_BT * real_BT).max()
        if state is None and x_BTD.shape[1] <= self.max_length:
            pass  # known without reading a value, for which an accelerator would have to stop
        elif torch.compiler.is_exporting():  # a check inside the exported model
            torch._check(last.item() < self.max_length)
        elif last >= self.max_length:
            raise ValueError(
                f"model.max_length={self.max_length}: is too short for {int(last) + 1} tokens; "
                "raise it or set model.positions=none"
            )
        # Padding after the last position looks up some row as well.
        return x_BTD + self.table(position_BT.clamp(max=self.max_length - 1)), (next_B,)

    def initial_state(self, batch_size: int) -> State:
        """Position 0 for all rows [B], as int64."""
        return (zeros(self, batch_size).long(),)

    @property
    def description(self) -> str:
        """The last word of a model's description."""
        return "positions"


def rotary_angles(
    position_BT: Tensor, head_dim: int, dtype: torch.dtype, base: float = 10_000.0
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, T, D/2] for `rotate`, by position (Su et al. 2021).

    Angles are at least float32, whatever the `dtype` of the result: bfloat16 has the same number
    for the positions 256 and 257.
    """
    exponent_D = torch.arange(0, head_dim, 2, device=position_BT.device) / head_dim
    frequency_D = (base**-exponent_D).to(torch.promote_types(dtype, torch.float32))
    angle_B1TD = position_BT[:, None, :, None] * frequency_D
    return angle_B1TD.cos().to(dtype), angle_B1TD.sin().to(dtype)


def rotate(vectors_BNTD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (one element of the first half, one of the second) by its angle."""
    cos, sin = rotation
    first, second = vectors_BNTD.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
