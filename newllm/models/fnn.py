"""The feed-forward network inside a cell, behind the cell's input projection.

Shapes: B batch, H hidden.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class PlainFNN(nn.Module):
    """The summary's: ReLU -> Dropout, then num_layers - 1 times Linear -> ReLU -> Dropout."""

    def __init__(self, hidden_dim: int, num_layers: int) -> None:
        super().__init__()
        self.num_masks = num_layers
        self.layers = nn.ModuleList(
            nn.Linear(hidden_dim, hidden_dim) for _ in range(num_layers - 1)
        )

    def forward(self, projected_BH: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """Map the projected input to the hidden vector, with `num_masks` scaled dropout masks."""
        hidden_BH = _drop(F.relu(projected_BH), masks, 0)
        for depth, linear in enumerate(self.layers, start=1):
            hidden_BH = _drop(F.relu(linear(hidden_BH)), masks, depth)
        return hidden_BH


class ResidualFNN(nn.Module):
    """num_layers - 1 blocks h + Linear(Dropout(ReLU(LayerNorm(h)))), then a LayerNorm.

    The pre-activation order keeps an identity path to the last LayerNorm (He et al. 2016).
    """

    def __init__(self, hidden_dim: int, num_layers: int) -> None:
        super().__init__()
        self.num_masks = num_layers - 1
        self.layers = nn.ModuleList(
            nn.Linear(hidden_dim, hidden_dim) for _ in range(num_layers - 1)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(num_layers - 1))
        self.final_norm = nn.LayerNorm(hidden_dim)

    def forward(self, projected_BH: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """Map the projected input to the hidden vector, as in `PlainFNN`."""
        hidden_BH = projected_BH
        for depth, (norm, linear) in enumerate(zip(self.norms, self.layers, strict=True)):
            hidden_BH = hidden_BH + linear(_drop(F.relu(norm(hidden_BH)), masks, depth))
        normed_BH: Tensor = self.final_norm(hidden_BH)
        return normed_BH


def _drop(hidden_BH: Tensor, masks: Sequence[Tensor] | None, depth: int) -> Tensor:
    return hidden_BH if masks is None else hidden_BH * masks[depth]


FNNS: dict[str, type[PlainFNN] | type[ResidualFNN]] = {"plain": PlainFNN, "residual": ResidualFNN}
