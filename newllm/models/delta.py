"""A matrix memory written by the delta rule, with keys that depend on what it holds.

Shapes: B batch, E input, C context, H hidden, N heads, J factors of a step, K = C / N, the width of
the keys and values of a head.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.config.faults import no_such_option, raise_faults, too_small
from newllm.models.cell import Cell
from newllm.models.fnn import FNNS
from newllm.models.layer import State, zeros
from newllm.models.quantization import Quantized
from newllm.models.settings import dropout_faults, head_faults


class DeltaCell(Cell):
    """Read a matrix with a query from the token; write it by a function of what was read.

    For each head, with unit keys and queries, and the state S a matrix [K, K]:

        q    = unit(W_q x_t + b_q)
        r    = norm(S_{t-1} q),  norm(s) = g * s / sqrt(1 + mean(s^2))
        h_t  = F(W [x_t; r] + b), the output, from the reads r of all heads
        k_j  = unit(W_k^j h_t + b_k^j),  v_j = W_v^j h_t + b_v^j
        beta_j = 2 sigmoid(w_b^j h_t + b_b^j),  a = sigmoid(b + w_a h_t + b_a)
        S_t  = a S_{t-1}, then for j = 1 ... J:  S_t <- S_t - beta_j (S_t k_j - v_j) k_j^T
        S_t  <- normalization(S_t), if there is one

    A write is the delta rule of fast weights (Schlag et al. 2021, arXiv 2102.11174). It multiplies
    S by the generalized Householder matrix I - beta_j k_j k_j^T; a token multiplies it by J of them
    (DeltaProduct, Siems et al. 2025, arXiv 2502.10297), whose eigenvalues 1 - beta_j lie in (-1, 1)
    (Grazzi et al. 2024, arXiv 2411.12537), and by the forget gate a of the gated delta rule (Yang
    et al. 2024, arXiv 2412.06464). There, all of these depend on the input alone, so that the step
    is linear in S (`newllm.models.linear_delta`). Here they depend on S through the network F, as
    in fast weights with a recurrent slow network (Irie et al. 2021, arXiv 2106.06295), which feeds
    back its last output instead of a read. The state is [B, N, K, K].

    Args:
        input_dim: E.
        context_dim: C, the width of the keys of all heads; the state has C * C / N numbers.
        hidden_dim: H.
        num_layers: Linear layers before the heads, including the input projection.
        num_heads: N, which must divide C.
        num_factors: J, the writes of a token.
        forget_bias: b; None never forgets (a = 1). With 4, a memory at first fades within some 50
            tokens. Without forgetting, what is never written over piles up, and disturbs the reads
            of sequences longer than those of training.
        dropout: probability inside the feed-forward network.
        fnn: wiring of the feed-forward network, "plain" or "residual".
        normalization: factory of the normalization of a head's matrix, from its K * K numbers.

    Raises:
        ValueError: a setting is impossible; one line for each.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int,
        hidden_dim: int,
        num_layers: int,
        num_heads: int,
        num_factors: int = 1,
        forget_bias: float | None = 4.0,
        dropout: float = 0.0,
        fnn: str = "plain",
        normalization: Callable[[int], nn.Module] = nn.Identity,
    ) -> None:
        raise_faults(
            [
                *too_small(
                    "model",
                    1,
                    context_dim=context_dim,
                    hidden_dim=hidden_dim,
                    num_layers=num_layers,
                    num_heads=num_heads,
                    num_factors=num_factors,
                ),
                *head_faults("context_dim", context_dim, num_heads),
                *dropout_faults(dropout=dropout),
                *no_such_option("model", FNNS, fnn=fnn),
            ]
        )
        super().__init__(input_dim, hidden_dim)
        self.context_dim = context_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.num_factors = num_factors
        self.dropout = dropout
        self.mask_dim = hidden_dim
        self.query = nn.Linear(input_dim, context_dim)
        # An eps of 1 bounds large reads, and leaves those of a nearly empty memory small.
        self.read_norm = nn.RMSNorm(context_dim // num_heads, eps=1.0)
        self.input = nn.Linear(input_dim + context_dim, hidden_dim)
        self.fnn = FNNS[fnn](hidden_dim, num_layers)
        self.num_masks = self.fnn.num_masks
        self.key = nn.Linear(hidden_dim, num_factors * context_dim)
        self.value = nn.Linear(hidden_dim, num_factors * context_dim)
        self.beta = nn.Linear(hidden_dim, num_factors * num_heads)
        self.forget_bias = forget_bias
        self.forget_gate = None if forget_bias is None else nn.Linear(hidden_dim, num_heads)
        self.normalization = normalization((context_dim // num_heads) ** 2)
        if isinstance(self.normalization, Quantized):
            self.state_bits = num_heads * self.normalization.bits

    def initial_state(self, batch_size: int) -> State:
        """Matrices of zeros [B, N, K, K]."""
        width = self.context_dim // self.num_heads
        return (zeros(self, batch_size, self.num_heads, width, width),)

    def forward(
        self, inputs_BE: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """Take one step; beta is [B, J, N], and forget [B, N]."""
        (memory_BNKK,) = state
        query_BNK = F.normalize(self.query(inputs_BE).unflatten(-1, (self.num_heads, -1)), dim=-1)
        read_BC = self.read_norm(_read(memory_BNKK, query_BNK)).flatten(1)
        hidden_BH = self.fnn(self.input(torch.cat((inputs_BE, read_BC), dim=-1)), masks)
        of_factors = self.num_factors, self.num_heads, -1
        key_BJNK = F.normalize(self.key(hidden_BH).unflatten(-1, of_factors), dim=-1)
        value_BJNK = self.value(hidden_BH).unflatten(-1, of_factors)
        beta_BJN = 2 * torch.sigmoid(self.beta(hidden_BH)).unflatten(-1, of_factors[:2])
        gates = {"beta": beta_BJN}
        if self.forget_gate is not None:
            gates["forget"] = torch.sigmoid(self.forget_gate(hidden_BH) + self.forget_bias)
            memory_BNKK = gates["forget"][..., None, None] * memory_BNKK
        for j in range(self.num_factors):
            key_BNK = key_BJNK[:, j]
            error_BNK = _read(memory_BNKK, key_BNK) - value_BJNK[:, j]
            change_BNK = beta_BJN[:, j, :, None] * error_BNK
            memory_BNKK = memory_BNKK - change_BNK[..., :, None] * key_BNK[..., None, :]
        memory_BNKK = self.normalization(memory_BNKK.flatten(2)).view_as(memory_BNKK)
        return hidden_BH, (memory_BNKK,), gates

    @property
    def description(self) -> str:
        """Such as `delta C32 heads2 H64 L2 E64`, then settings that are not the usual ones."""
        words = ["delta", f"C{self.context_dim}", f"heads{self.num_heads}"]
        words += [f"H{self.output_dim}", f"L{self.num_layers}", f"E{self.input_dim}"]
        if self.num_factors > 1:
            words.append(f"factors{self.num_factors}")
        if self.forget_bias != 4:
            words.append("noforget" if self.forget_bias is None else f"forget{self.forget_bias:g}")
        if not isinstance(self.normalization, nn.Identity):
            words.append(type(self.normalization).__name__.lower())
        if not isinstance(self.fnn, FNNS["plain"]):
            words.append("residual")
        return " ".join(words)


def _read(memory_BNKK: Tensor, address_BNK: Tensor) -> Tensor:
    return (memory_BNKK * address_BNK[..., None, :]).sum(-1)
