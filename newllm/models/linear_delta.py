"""DeltaNet and DeltaProduct: a matrix memory that is linear in what it holds.

Shapes: B batch, T time (tokens), D input, L layers, H hidden, F feedforward, N heads, J writes of a
token, K = H / N, the width of keys and values, P = (1 + 2 J) H projected, W width of a convolution.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.config.faults import raise_faults, too_small
from newllm.models.delta_rule import delta_rule
from newllm.models.layer import Layer, State, zeros
from newllm.models.packing import Packing, take
from newllm.models.settings import dropout_faults, head_faults


class LinearDeltaStep(nn.Module):
    """Write a matrix by the delta rule, with keys, values and betas from the input alone, and read.

    For each head, with the state S a matrix [K, K] and x the input of the layer:

        q    = unit(silu(conv(W_q x))),  k_j = unit(silu(conv(W_k^j x))),  v_j = silu(conv(W_v^j x))
        beta_j = s sigmoid(w_b^j x_t + b_b^j), with s = 2, or 1 without negative eigenvalues
        S_t  = S_{t-1}, then for j = 1 ... J:  S_t <- S_t - beta_j (S_t k_j - v_j) k_j^T
        y_t  = W_o norm(S_t q), where norm divides by the root of the mean square
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        num_factors: int,
        conv_width: int,
        negative_eigenvalues: bool,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_factors = num_factors
        self.largest_beta = 2.0 if negative_eigenvalues else 1.0
        projected_dim = (1 + 2 * num_factors) * hidden_dim
        self.project = nn.Linear(hidden_dim, projected_dim, bias=False)
        # By distance: the weight of this token, of the one before it, ...
        self.conv = nn.Parameter(torch.empty(conv_width, projected_dim))
        nn.init.uniform_(self.conv, -(conv_width**-0.5), conv_width**-0.5)
        self.beta = nn.Linear(hidden_dim, num_factors * num_heads)
        self.norm = nn.RMSNorm(hidden_dim // num_heads, eps=1e-5)
        self.output = nn.Linear(hidden_dim, hidden_dim, bias=False)

    def forward(
        self, inputs_BTH: Tensor, memory_BNKK: Tensor, recent_BWP: Tensor, packing: Packing
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs [B, T, H], the memory, and the last W - 1 projected tokens."""
        projected_BTP, recent_BWP = self._convolved(self.project(inputs_BTH), recent_BWP, packing)
        vectors = F.silu(projected_BTP).unflatten(
            -1, (1 + 2 * self.num_factors, self.num_heads, -1)
        )
        query, key, value = vectors.permute(0, 3, 1, 2, 4).split(
            (1, self.num_factors, self.num_factors), dim=3
        )
        beta_BTJN = self.largest_beta * torch.sigmoid(self.beta(inputs_BTH)).unflatten(
            -1, (self.num_factors, self.num_heads)
        )
        beta_BTJN = beta_BTJN * packing.is_real_BT[:, :, None, None]
        with torch.autocast(memory_BNKK.device.type, enabled=False):
            read_BNTK, memory_BNKK = delta_rule(
                F.normalize(query.squeeze(3).to(memory_BNKK), dim=-1),
                F.normalize(key.to(memory_BNKK), dim=-1),
                value.to(memory_BNKK),
                beta_BTJN.permute(0, 3, 1, 2).to(memory_BNKK),
                memory_BNKK,
                packing.segment_BT,
            )
        read_BTH = self.norm(read_BNTK).transpose(1, 2).flatten(2)
        return self.output(read_BTH), memory_BNKK, recent_BWP

    def _convolved(
        self, own_BTP: Tensor, recent_BWP: Tensor, packing: Packing
    ) -> tuple[Tensor, Tensor]:
        """The causal convolution of each channel, and the last W - 1 tokens after the chunk."""
        num_recent, num_tokens = recent_BWP.shape[1], own_BTP.shape[1]
        all_BSP = torch.cat((recent_BWP, own_BTP.to(recent_BWP)), dim=1)
        segment_BS = F.pad(packing.segment_BT, (num_recent, 0))
        convolved_BTP = torch.zeros_like(own_BTP)
        for distance, weight_P in enumerate(self.conv):
            places = slice(num_recent - distance, num_recent - distance + num_tokens)
            is_seen_BT = segment_BS[:, places] == packing.segment_BT
            seen_BTP = all_BSP[:, places].masked_fill(~is_seen_BT[..., None], 0)
            convolved_BTP = convolved_BTP + weight_P * seen_BTP
        last_BW = packing.num_real_B[:, None] + torch.arange(num_recent, device=own_BTP.device)
        is_seen_BW = segment_BS.gather(1, last_BW) == packing.last_segment_B[:, None]
        return convolved_BTP, take(all_BSP, last_BW).masked_fill(~is_seen_BW[..., None], 0)


class LinearDelta(Layer):
    """Blocks of a `LinearDeltaStep` and a feed-forward network, each with pre-norm and a residual.

    With num_factors=1, this is DeltaNet (Yang et al. 2024, arXiv 2406.06484), with more,
    DeltaProduct (Siems et al. 2025, arXiv 2502.10297), both without a forget gate. Betas up to 2
    are those of Grazzi et al. (2024, arXiv 2411.12537): with betas up to 1, no eigenvalue of a step
    is negative, and the layer cannot track parity. Differences from the published code: the
    feed-forward network is that of `MinGRU`, with ReLU instead of SwiGLU, and norms are LayerNorms,
    so that the baselines differ in their recurrence only; beta has a bias. The state is [B, L, N,
    K, K], and the last W - 1 projected tokens [B, L, W - 1, P].

    Args:
        input_dim: D.
        hidden_dim: H.
        num_layers: L.
        feedforward_dim: F.
        num_heads: N, which must divide H.
        num_factors: J.
        conv_width: W; 1 looks at no earlier token.
        negative_eigenvalues: whether beta may exceed 1.
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
        num_heads: int,
        num_factors: int = 1,
        conv_width: int = 4,
        negative_eigenvalues: bool = True,
        dropout: float = 0.0,
    ) -> None:
        sizes = {
            "hidden_dim": hidden_dim,
            "num_layers": num_layers,
            "feedforward_dim": feedforward_dim,
            "num_heads": num_heads,
            "num_factors": num_factors,
            "conv_width": conv_width,
        }
        raise_faults(
            [
                *too_small("model", 1, **sizes),
                *head_faults("hidden_dim", hidden_dim, num_heads),
                *dropout_faults(dropout=dropout),
            ]
        )
        super().__init__(input_dim, hidden_dim)
        self.feedforward_dim = feedforward_dim
        self.num_heads = num_heads
        self.num_factors = num_factors
        self.conv_width = conv_width
        self.negative_eigenvalues = negative_eigenvalues
        self.dropout = dropout
        self.input = nn.Linear(input_dim, hidden_dim)
        layers = range(num_layers)
        self.recurrent_norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in layers)
        self.recurrent = nn.ModuleList(
            LinearDeltaStep(hidden_dim, num_heads, num_factors, conv_width, negative_eigenvalues)
            for _ in layers
        )
        self.feedforward_norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in layers)
        self.feedforward = nn.ModuleList(
            nn.Sequential(
                nn.Linear(hidden_dim, feedforward_dim),
                nn.ReLU(),
                nn.Linear(feedforward_dim, hidden_dim),
            )
            for _ in layers
        )
        self.final_norm = nn.LayerNorm(hidden_dim)

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read a chunk."""
        memory, recent = self.initial_state(x_BTD.shape[0]) if state is None else state
        packing = Packing.of(x_BTD, pad_BT, reset_BT)
        hidden_BTH = self.input(packing.pack(x_BTD))
        memories, recents = [], []
        for depth, layer in enumerate(self.recurrent):
            normed_BTH = self.recurrent_norms[depth](hidden_BTH)
            read_BTH, *after = layer(normed_BTH, memory[:, depth], recent[:, depth], packing)
            hidden_BTH = hidden_BTH + F.dropout(read_BTH, self.dropout, self.training)
            fed_BTH = self.feedforward[depth](self.feedforward_norms[depth](hidden_BTH))
            hidden_BTH = hidden_BTH + F.dropout(fed_BTH, self.dropout, self.training)
            memories.append(after[0])
            recents.append(after[1])
        y_BTH = packing.unpack(self.final_norm(hidden_BTH))
        return y_BTH, (torch.stack(memories, dim=1), torch.stack(recents, dim=1))

    def initial_state(self, batch_size: int) -> State:
        """Zeros [B, L, N, K, K] and [B, L, W - 1, P]."""
        depth, width = len(self.recurrent), self.output_dim // self.num_heads
        projected_dim = (1 + 2 * self.num_factors) * self.output_dim
        return (
            zeros(self, batch_size, depth, self.num_heads, width, width),
            zeros(self, batch_size, depth, self.conv_width - 1, projected_dim),
        )

    @property
    def description(self) -> str:
        """Such as `linear_delta E128 H256 heads4 L3`, then settings that are not the usual ones."""
        words = ["linear_delta", f"E{self.input_dim}", f"H{self.output_dim}"]
        words += [f"heads{self.num_heads}", f"L{len(self.recurrent)}"]
        if self.feedforward_dim != self.output_dim:
            words.append(f"F{self.feedforward_dim}")
        if self.num_factors > 1:
            words.append(f"factors{self.num_factors}")
        if self.conv_width != 4:
            words.append(f"conv{self.conv_width}")
        if not self.negative_eigenvalues:
            words.append("positive")
        return " ".join(words)
