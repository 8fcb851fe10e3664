"""One step of the context-vector model: the equations, and nothing of time or batching.

Shapes: B batch, E embedding, C context, H hidden.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from newllm.models.fnn import PlainFNN, ResidualFNN
from newllm.models.gating import Gating


class ContextCell(nn.Module):
    """Read one token against the context; give the hidden vector and the new context.

    A deep-transition Elman network (Pascanu et al. 2014); gated, it is close to a recurrent
    highway network (Zilly et al. 2017).

    Args:
        embedding_dim: E.
        context_dim: C.
        hidden_dim: H.
        fnn: maps the projected input [B, H] to the hidden vector [B, H].
        gating: changes the context by the hidden vector.
        normalization: maps a context [B, C] to a context [B, C].
        context_clip: each element of the context is clamped to +- this; None clamps nothing.
        dropout: probability for whoever draws the masks; the cell itself draws none.
    """

    def __init__(
        self,
        embedding_dim: int,
        context_dim: int,
        hidden_dim: int,
        fnn: PlainFNN | ResidualFNN,
        gating: Gating,
        normalization: nn.Module,
        context_clip: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.context_dim = context_dim
        self.hidden_dim = hidden_dim
        self.input = nn.Linear(embedding_dim + context_dim, hidden_dim)
        self.fnn = fnn
        self.gating = gating
        self.normalization = normalization
        self.context_clip = context_clip
        self.dropout = dropout

    def forward(
        self, embedded_BE: Tensor, context_BC: Tensor, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Take one step.

        Args:
            embedded_BE: the token's embedding.
            context_BC: the context before the token.
            masks: `fnn.num_masks` dropout masks [B, H], already scaled; None drops nothing.

        Returns:
            The hidden vector [B, H], the context after the token [B, C], and the gates, each
            [B, C], by name.
        """
        input_BI = torch.cat((embedded_BE, context_BC), dim=-1)
        hidden_BH = self.fnn(self.input(input_BI), masks)
        context_BC, gates = self.gating(hidden_BH, context_BC)
        context_BC = self.normalization(context_BC)
        if self.context_clip is not None:
            context_BC = context_BC.clamp(-self.context_clip, self.context_clip)
        return hidden_BH, context_BC, gates
