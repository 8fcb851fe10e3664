"""A recurrent context, and attention to what it was at the end of every block of tokens.

Shapes: B batch, T time (tokens), D input, C context, H hidden, N attention heads, K = H / N, F
feedforward, M contexts that were stored.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.config.faults import raise_faults, too_small
from newllm.models.cell import Cell
from newllm.models.layer import Layer, State, real_tokens, surely, zeros
from newllm.models.packing import first_true, take
from newllm.models.positions import token_positions
from newllm.models.recurrence.reference import Recurrence
from newllm.models.recurrent import Recurrent, as_vector
from newllm.models.settings import dropout_faults, head_faults, settings_of


class ContextAttention(Layer):
    """A recurrent layer whose tokens attend to its contexts at the ends of all earlier blocks.

    With blocks of n tokens, and the cell (h_t, c_t) = cell(x_t, c_{t-1}):

        m_j = c_{j n},  j = 0, 1, ...;  c_0 is the initial context
        a_t = h_t + W_o sum_j softmax_j(q_t . k_j / sqrt(K)) v_j,  j n < t
        q_t = W_q norm(h_t),  k_j = W_k m_j,  v_j = W_v m_j, for each head
        y_t = norm(a_t + W_2 relu(W_1 norm(a_t)))

    The state is int64 [B], the number of tokens read, the state of the cell, and the keys and the
    values [B, N, M, K] of the stored contexts: one for n tokens, where attention to tokens has one
    for each. LSTM networks with attention to their own past (Cheng et al. 2016, arXiv 1601.06733)
    attend to the states after all tokens, and feed what they find back to the recurrence; the
    compressive Transformer (Rae et al. 2019, arXiv 1911.05507) keeps one vector for a number of
    old tokens, but no recurrent state.

    Args:
        input_dim: D.
        cell: makes the cell from `input_dim` and the settings.
        block_length: n.
        num_heads: N, which must divide the output of the cell, H.
        feedforward_dim: F.
        dropout: probability inside the cell, on attention weights, and before each addition.
        recurrence: carries the cell over time; as in `Recurrent`.
        settings: settings of the cell.

    Raises:
        ValueError: a setting is impossible.
    """

    def __init__(
        self,
        input_dim: int,
        cell: Callable[..., Cell],
        block_length: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float = 0.0,
        recurrence: Recurrence | None = None,
        **settings: object,
    ) -> None:
        sizes = {
            "block_length": block_length,
            "num_heads": num_heads,
            "feedforward_dim": feedforward_dim,
        }
        raise_faults([*too_small("model", 1, **sizes), *dropout_faults(dropout=dropout)])
        if "dropout" in settings_of(cell):
            settings["dropout"] = dropout
        recurrent = Recurrent(input_dim, cell, recurrence, **settings)
        width = recurrent.output_dim
        raise_faults(head_faults("hidden_dim", width, num_heads))
        super().__init__(input_dim, width)
        self.block_length = block_length
        self.num_heads = num_heads
        self.dropout = dropout
        self.recurrent = recurrent
        self.query_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        context_dim = as_vector(recurrent.initial_state(1)).shape[1]
        self.key_value = nn.Linear(context_dim, 2 * width)
        self.attention_output = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward_dim), nn.ReLU(), nn.Linear(feedforward_dim, width)
        )
        self.final_norm = nn.LayerNorm(width)

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read a chunk."""
        num_read_B, *cell_state, keys, values = (
            self.initial_state(x_BTD.shape[0]) if state is None else state
        )
        real_BT = real_tokens(x_BTD, pad_BT)
        position_BT, next_B = token_positions(real_BT, num_read_B, reset_BT)
        is_end_BT = real_BT & ((position_BT + 1) % self.block_length == 0)
        segment_BT = torch.zeros_like(position_BT) if reset_BT is None else reset_BT.cumsum(1)
        ends = _ends(is_end_BT)
        hidden_BTH, contexts, after = self._read(x_BTD, tuple(cell_state), pad_BT, reset_BT, ends)
        ends_M = torch.tensor(ends, dtype=torch.long, device=x_BTD.device)

        own_keys, own_values = self._keys_and_values(contexts)
        keys, values = torch.cat((keys, own_keys), dim=2), torch.cat((values, own_values), dim=2)
        num_before = keys.shape[2] - len(ends)
        number_M = torch.arange(num_before, device=x_BTD.device)
        is_stored_BM = number_M < (num_read_B // self.block_length)[:, None]
        is_stored_BM = torch.cat((is_stored_BM, is_end_BT[:, ends_M]), dim=1)
        segment_BM = F.pad(segment_BT[:, ends_M], (num_before, 0))
        end_M = F.pad(ends_M, (num_before, 0), value=-1)
        time_T1 = torch.arange(x_BTD.shape[1], device=x_BTD.device)[:, None]
        is_seen_BTM = (segment_BT[:, :, None] == segment_BM[:, None]) & (end_M < time_T1)
        y_BTH = self._attend(hidden_BTH, keys, values, is_seen_BTM & is_stored_BM[:, None])

        is_stored_BM = is_stored_BM & (segment_BM == segment_BT[:, -1:])
        num_stored, most = is_stored_BM.sum(1).max(), is_stored_BM.shape[1]
        is_known = surely(num_stored >= 0, worth_waiting=True)
        kept_BM = first_true(is_stored_BM, int(num_stored) if is_known else most)
        kept = (take(each.transpose(1, 2), kept_BM).transpose(1, 2) for each in (keys, values))
        return y_BTH, (next_B, *after, *kept)

    def _read(
        self,
        x_BTD: Tensor,
        state: State,
        pad_BT: Tensor | None,
        reset_BT: Tensor | None,
        ends: list[int],
    ) -> tuple[Tensor, Tensor, State]:
        """The outputs of the cell, its contexts after the tokens `ends`, and its last state."""
        first = [0, *(end + 1 for end in ends)]
        last = [*first[1:], x_BTD.shape[1]]
        sizes = [end - start for start, end in zip(first, last, strict=True) if end > start]
        flags = ([None] * len(sizes) if each is None else each.split(sizes, 1)
                 for each in (pad_BT, reset_BT))  # fmt: skip
        outputs, contexts = [], [as_vector(state)[:, None][:, :0]]
        for piece in zip(x_BTD.split(sizes, 1), *flags, strict=True):
            output_BTH, state = self.recurrent(piece[0], state, *piece[1:])
            outputs.append(output_BTH)
            contexts.append(as_vector(state)[:, None])
        return torch.cat(outputs, dim=1), torch.cat(contexts[: len(ends) + 1], dim=1), state

    def _keys_and_values(self, contexts_BMC: Tensor) -> tuple[Tensor, Tensor]:
        """Each [B, N, M, K]."""
        both = self.key_value(contexts_BMC).unflatten(-1, (2, self.num_heads, -1))
        key, value = both.permute(2, 0, 3, 1, 4)
        return key, value

    def _attend(
        self, hidden_BTH: Tensor, keys: Tensor, values: Tensor, is_seen_BTM: Tensor
    ) -> Tensor:
        """The outputs of the layer, from those of the cell."""
        initial_1MC = as_vector(self.recurrent.initial_state(1))[:, None]
        initial_key, initial_value = (
            each.expand(keys.shape[0], -1, -1, -1) for each in self._keys_and_values(initial_1MC)
        )
        query_BTH = self.query(self.query_norm(hidden_BTH))
        attended_BNTK = F.scaled_dot_product_attention(
            query_BTH.unflatten(-1, (self.num_heads, -1)).transpose(1, 2),
            torch.cat((initial_key, keys), dim=2),
            torch.cat((initial_value, values), dim=2),
            F.pad(is_seen_BTM, (1, 0), value=True)[:, None],
            self.dropout * self.training,
        )
        change_BTH = self.attention_output(attended_BNTK.transpose(1, 2).flatten(2))
        hidden_BTH = hidden_BTH + F.dropout(change_BTH, self.dropout, self.training)
        change_BTH = self.feedforward(self.feedforward_norm(hidden_BTH))
        y_BTH: Tensor = self.final_norm(
            hidden_BTH + F.dropout(change_BTH, self.dropout, self.training)
        )
        return y_BTH

    def initial_state(self, batch_size: int) -> State:
        """No token read, the initial state of the cell, and no stored context."""
        shape = batch_size, self.num_heads, 0, self.output_dim // self.num_heads
        num_read_B = zeros(self, batch_size).long()
        cell_state = self.recurrent.initial_state(batch_size)
        return (num_read_B, *cell_state, zeros(self, *shape), zeros(self, *shape))

    def state_bytes(self, num_tokens: int) -> int:
        """Bytes of one sequence's state, which grows with every block."""
        stored = 2 * self.output_dim * (num_tokens // self.block_length)
        return super().state_bytes(0) + stored * self.final_norm.weight.element_size()

    def flops_per_token(self, num_tokens: int) -> int:
        """As in `Layer`, and the products of the last token with all keys and values.

        Keys and values are computed at the end of a block only.
        """
        num_seen = 1 + max(0, num_tokens - 1) // self.block_length
        own = 4 * self.output_dim * num_seen
        if num_tokens % self.block_length:
            own -= 2 * self.key_value.weight.numel()
        return super().flops_per_token(num_tokens) + own

    def state_bits(self, num_tokens: int) -> float:
        """Those of its bytes; keys and values follow from contexts, which may be quantized."""
        bits = self.recurrent.cell.state_bits
        num_contexts = 1 + num_tokens // self.block_length
        return super().state_bits(num_tokens) if bits is None else num_contexts * bits

    @property
    def description(self) -> str:
        """Such as `context_attention block16 heads2 gated C64 H64 L2 E64`."""
        words = f"context_attention block{self.block_length} heads{self.num_heads}"
        return f"{words} {self.recurrent.description}"


def _ends(is_end_BT: Tensor) -> list[int]:
    """The tokens after which the context of some row is stored; all if that is not known."""
    is_end_T = is_end_BT.any(0)
    # A chunk of the recurrence for each token would take longer than waiting.
    if surely(torch.ones_like(is_end_T).all(), worth_waiting=True):
        ends: list[int] = is_end_T.nonzero()[:, 0].tolist()
        return ends
    return [*range(is_end_BT.shape[1])]
