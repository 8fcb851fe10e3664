"""A context of several heads.

Shapes: B batch, E input, C context, N heads, K = C / N context of a head, H hidden.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from newllm.config.faults import raise_faults, too_small
from newllm.models.cell import ContextCell
from newllm.models.gating import Additive, Gating
from newllm.models.parts import PerPart


class PerHead(Gating):
    """A gating for each head, which reads the hidden vector and the context of this head.

    Args:
        hidden_dim: H.
        context_dim: C.
        num_heads: N.
        gating: factory of the gating of a head, from (H + K, K).
    """

    def __init__(
        self,
        hidden_dim: int,
        context_dim: int,
        num_heads: int,
        gating: Callable[[int, int], Gating],
    ) -> None:
        super().__init__()
        head_dim = context_dim // num_heads
        self.heads = nn.ModuleList(
            gating(hidden_dim + head_dim, head_dim) for _ in range(num_heads)
        )
        self.name = str(self.heads[0].name)

    def forward(self, hidden_BH: Tensor, context_BC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        contexts, gates = [], []
        for head, view_BK in zip(self.heads, context_BC.chunk(len(self.heads), -1), strict=True):
            own_BK = view_BK.clone()  # torch.compile may mistake the strides of a view it keeps
            own_BK, own_gates = head(torch.cat((hidden_BH, own_BK), dim=-1), own_BK)
            contexts.append(own_BK)
            gates.append(own_gates)
        by_name = {name: torch.cat([own[name] for own in gates], dim=-1) for name in gates[0]}
        return torch.cat(contexts, dim=-1), by_name


class MultiHeadCell(ContextCell):
    """A context of N heads, each with an update and a normalization of its own.

        h_t   = FNN(x_t, c_{t-1})                            reads all heads and mixes them
        c_t^n = LN(f^n * c_{t-1}^n + i^n * delta^n)          for each head n
        f^n, i^n, delta^n = sigmoid, sigmoid, id of W^n [h_t, c_{t-1}^n] + b^n

    The carry from one context to the next is block-diagonal, with a block for each head, as in the
    sLSTM of several heads (Beck et al. 2024, arXiv 2405.04517), which mixes its heads only above
    the recurrence. Here, the FNN mixes them at each step, as the communication of recurrent
    independent mechanisms does (Goyal et al. 2019, arXiv 1909.10893).

    Args:
        input_dim: E.
        context_dim: C, of all heads together.
        num_heads: N, which must divide C.
        gating: factory of the update of a head, as in `ContextCell`.
        normalization: factory of the normalization of a head, from (K).
        settings: other settings of a `ContextCell`.

    Raises:
        ValueError: a setting is impossible.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int,
        num_heads: int,
        gating: Callable[[int, int], Gating] = Additive,
        normalization: Callable[[int], nn.Module] = nn.Identity,
        **settings: Any,
    ) -> None:
        faults = too_small("model", 1, num_heads=num_heads)
        if not faults and context_dim % num_heads:
            faults = [f"model.num_heads={num_heads}: must divide model.context_dim={context_dim}"]
        raise_faults(faults)
        super().__init__(
            input_dim,
            context_dim,
            gating=partial(PerHead, num_heads=num_heads, gating=gating),
            normalization=partial(PerPart, num_parts=num_heads, normalization=normalization),
            **settings,
        )
        self.num_heads = num_heads

    @property
    def description(self) -> str:
        """That of a `ContextCell`, then the heads."""
        return f"{super().description} heads{self.num_heads}"
