"""A deep read-out above a shallow recurrence.

Shapes: B batch, T time (tokens), D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from newllm.config.faults import raise_faults, too_small
from newllm.models.fnn import ResidualFNN
from newllm.models.layer import Layer, State
from newllm.models.settings import dropout_faults


class Readout(Layer):
    """Residual feed-forward layers at each position, all tokens at once; it has no state.

        y_t = LN(u_t^n), u_t^0 = x_t, u_t^l = u_t^{l-1} + W_l ReLU(LN(u_t^{l-1})) + b_l

    Above a context cell of r layers, its n = L - r layers take the place of as many in the FNN of
    the cell, which then do not lengthen the path from one context to the next. This is the deep
    output of Pascanu et al. (2014, arXiv 1312.6026) instead of their deep transition; as in linear
    recurrent models with feed-forward layers between them (Orvieto et al. 2023, arXiv 2303.06349),
    most of the computation is parallel over time.

    Args:
        input_dim: D.
        num_layers: L, Linear layers of the recurrence and the read-out together.
        recurrent_layers: r, those in the recurrence below.
        dropout: probability before each Linear.

    Raises:
        ValueError: a setting is impossible; one line for each.
    """

    def __init__(
        self, input_dim: int, num_layers: int, recurrent_layers: int = 1, dropout: float = 0.0
    ) -> None:
        faults = [
            *too_small("model", 1, recurrent_layers=recurrent_layers),
            *dropout_faults(dropout=dropout),
        ]
        if num_layers <= recurrent_layers:
            faults.append(
                f"model.num_layers={num_layers}: leaves no layer for the read-out; must be above "
                f"model.recurrent_layers={recurrent_layers}"
            )
        raise_faults(faults)
        super().__init__(input_dim, input_dim)
        self.dropout = dropout
        self.fnn = ResidualFNN(input_dim, num_layers - recurrent_layers + 1)

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read a chunk."""
        masks = None
        if self.training and self.dropout:
            ones_BTD = torch.ones_like(x_BTD)
            masks = [F.dropout(ones_BTD, self.dropout) for _ in range(self.fnn.num_masks)]
        return self.fnn(x_BTD, masks), ()

    def initial_state(self, batch_size: int) -> State:
        """Nothing."""
        return ()

    @property
    def description(self) -> str:
        """Such as `readout L8`."""
        return f"readout L{self.fnn.num_masks}"
