"""Causal self-attention with a feed-forward network: the blocks of a Transformer as a layer.

Shapes: B batch, T time (tokens), S tokens that the cache holds, D width, N attention heads, K width
of a head, F feedforward.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.config.faults import raise_faults, too_small
from newllm.models.layer import Layer, State, padding_only_trails, real_tokens, surely, zeros
from newllm.models.positions import rotary_angles, rotate, token_positions
from newllm.models.settings import dropout_faults

HEAD_WIDTH = 64
Cache = tuple[Tensor, Tensor]  # keys and values of one layer, each [B, N, S, K]


class View(Protocol):
    """What the queries of a chunk see; the same in every block."""

    @property
    def rotation(self) -> tuple[Tensor, Tensor] | None:
        """Rotation of the queries and keys of the chunk."""

    def attend(
        self,
        query_BNTK: Tensor,
        key_BNTK: Tensor,
        value_BNTK: Tensor,
        past: Cache | None,
        dropout: float,
    ) -> tuple[Tensor, Cache]:
        """What the queries find [B, N, T, K] in the chunk and the cache; the cache after it."""


class FullView(NamedTuple):
    """All tokens that a mask allows, or all earlier ones; the cache keeps every token."""

    mask_B1TS: Tensor | None  # bool, true where seen
    is_causal: bool  # without a mask: each query sees all tokens before it
    rotation: tuple[Tensor, Tensor] | None

    def attend(
        self,
        query_BNTK: Tensor,
        key_BNTK: Tensor,
        value_BNTK: Tensor,
        past: Cache | None,
        dropout: float,
    ) -> tuple[Tensor, Cache]:
        """As in `View`."""
        key, value = key_BNTK, value_BNTK
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        attended_BNTK = F.scaled_dot_product_attention(
            query_BNTK, key, value, self.mask_B1TS, dropout, self.is_causal
        )
        return attended_BNTK, (key, value)


class Block(nn.Module):
    """Attention and a feed-forward network, each within a residual connection.

    Normalized after each connection (Vaswani et al. 2017), or before each with norm_first.
    """

    def __init__(
        self, width: int, num_heads: int, feedforward_dim: int, dropout: float, norm_first: bool
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_first = norm_first
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.expand = nn.Linear(width, feedforward_dim)
        self.contract = nn.Linear(feedforward_dim, width)
        self.attention_norm = nn.LayerNorm(width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BTD: Tensor, view: View, past: Cache | None) -> tuple[Tensor, Cache]:
        """Return the new hidden vectors [B, T, D], and all keys and values."""
        if self.norm_first:
            change_BTD, cache = self._attend(self.attention_norm(hidden_BTD), view, past)
            hidden_BTD = hidden_BTD + change_BTD
            return hidden_BTD + self._feed_forward(self.feedforward_norm(hidden_BTD)), cache
        change_BTD, cache = self._attend(hidden_BTD, view, past)
        hidden_BTD = self.attention_norm(hidden_BTD + change_BTD)
        return self.feedforward_norm(hidden_BTD + self._feed_forward(hidden_BTD)), cache

    def _attend(self, hidden_BTD: Tensor, view: View, past: Cache | None) -> tuple[Tensor, Cache]:
        query, key, value = (
            part_BTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part_BTD in self.query_key_value(hidden_BTD).chunk(3, dim=-1)
        )
        if view.rotation is not None:
            query, key = rotate(query, view.rotation), rotate(key, view.rotation)
        dropout = self.dropout.p * self.training
        attended_BNTK, cache = view.attend(query, key, value, past, dropout)
        change_BTD = self.attention_output(attended_BNTK.transpose(1, 2).flatten(2))
        return self.dropout(change_BTD), cache

    def _feed_forward(self, hidden_BTD: Tensor) -> Tensor:
        inner_BTF = self.dropout(F.gelu(self.expand(hidden_BTD)))
        change_BTD: Tensor = self.dropout(self.contract(inner_BTF))
        return change_BTD


class Attention(Layer):
    """Blocks of causal attention, or, with leaky=True, with the mask fault of the original.

    The state is bool [B, S], which cached tokens each row still sees, then the keys and values
    [B, N, S, K] of each block. It grows with every token; at a reset it loses the tokens that no
    row of the batch sees any more.

    Args:
        input_dim: D.
        num_heads: N, which must divide D; None means heads of 64, which must then divide D.
        num_layers: blocks.
        feedforward_dim: F.
        dropout: probability on attention weights, inside the feed-forward network and at the end
            of both.
        norm_first: normalize before attention and feed-forward instead of after them.
        positions: "rotary" rotates queries and keys by the number of visible tokens before them;
            other positions do not concern this layer.
        leaky: every token sees all real tokens of its sequence, **the future included**; only for
            reproducing the published baseline. Such a layer has no state.

    Raises:
        ValueError: a setting is impossible; one line for each.
    """

    def __init__(
        self,
        input_dim: int,
        num_heads: int | None,
        num_layers: int,
        feedforward_dim: int,
        dropout: float = 0.0,
        norm_first: bool = False,
        positions: str = "none",
        leaky: bool = False,
    ) -> None:
        if num_heads is None:
            if input_dim % HEAD_WIDTH:
                raise_faults(
                    [f"model.num_heads=null: {HEAD_WIDTH} must divide {_layer_told(input_dim)}"]
                )
            num_heads = input_dim // HEAD_WIDTH
        sizes = too_small(
            "model", 1, num_heads=num_heads, num_layers=num_layers, feedforward_dim=feedforward_dim
        )
        faults = [*sizes, *dropout_faults(dropout=dropout)]
        raise_faults(faults or _head_faults(input_dim, num_heads, positions))
        super().__init__(input_dim, input_dim)
        self.num_heads = num_heads
        self.feedforward_dim = feedforward_dim
        self.norm_first = norm_first
        self.positions = positions
        self.leaky = self.sees_the_future = leaky
        self.blocks = nn.ModuleList(
            Block(input_dim, num_heads, feedforward_dim, dropout, norm_first)
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(input_dim)

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read a chunk; a leaky layer raises ValueError if it gets a state."""
        if self.leaky and state is not None:
            raise ValueError("model.leaky=true sees the future, so it cannot continue from a state")
        real_BT = real_tokens(x_BTD, pad_BT)
        past_BS, caches = (state[0], state[1:]) if state else (real_BT[:, :0], ())
        mask_B1TS, rotation = self._mask(real_BT, past_BS, pad_BT, reset_BT), None
        if self.positions == "rotary":
            position_BT, _ = token_positions(real_BT, past_BS.sum(1), reset_BT)
            rotation = rotary_angles(position_BT, self.input_dim // self.num_heads, x_BTD.dtype)
        view = FullView(mask_B1TS, mask_B1TS is None and not self.leaky, rotation)
        y_BTD, after = self.through_blocks(x_BTD, view, caches)
        if self.leaky:
            return y_BTD, ()
        visible_BS = _still_visible(real_BT, past_BS, reset_BT)
        is_needed_S = visible_BS.any(0)
        if reset_BT is not None and surely(~is_needed_S.all(), worth_waiting=True):
            # Tokens that no row will see again would accumulate over a stream.
            visible_BS = visible_BS[:, is_needed_S]
            after = [part_BNSK[:, :, is_needed_S] for part_BNSK in after]
        return y_BTD, (visible_BS, *after)

    def through_blocks(
        self, x_BTD: Tensor, view: View, caches: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The outputs, and the caches of all blocks, which start from none if `caches` is empty."""
        after: list[Tensor] = []
        for depth, block in enumerate(self.blocks):
            past = (caches[2 * depth], caches[2 * depth + 1]) if caches else None
            x_BTD, cache = block(x_BTD, view, past)
            after += cache
        return self.final_norm(x_BTD), after

    def initial_state(self, batch_size: int) -> State:
        """Caches of no token; nothing if leaky."""
        if self.leaky:
            return ()
        shape = batch_size, self.num_heads, 0, self.input_dim // self.num_heads
        visible_BS = zeros(self, batch_size, 0).bool()
        return (visible_BS, *(zeros(self, *shape) for _ in range(2 * len(self.blocks))))

    def _mask(
        self, real_BT: Tensor, past_BS: Tensor, pad_BT: Tensor | None, reset_BT: Tensor | None
    ) -> Tensor | None:
        """Which tokens each query sees [B, 1, T, S]; None if no mask is needed."""
        is_alone = past_BS.shape[1] == 0 and reset_BT is None
        if is_alone and (pad_BT is None or (not self.leaky and padding_only_trails(real_BT))):
            return None
        num_tokens = real_BT.shape[1]
        everything_TT = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=real_BT.device)
        mask_BTT = real_BT[:, None, :] & (everything_TT if self.leaky else everything_TT.tril())
        mask_BTS = past_BS[:, None, :].expand(-1, num_tokens, -1)
        if reset_BT is not None:
            segment_BT = reset_BT.cumsum(1)
            mask_BTT = mask_BTT & (segment_BT[:, :, None] == segment_BT[:, None, :])
            mask_BTS = mask_BTS & (segment_BT == 0)[:, :, None]
        # Even a <PAD> sees itself: a query that sees nothing could turn into NaN.
        itself_TT = torch.eye(num_tokens, dtype=torch.bool, device=real_BT.device)
        return torch.cat((mask_BTS, mask_BTT | itself_TT), dim=2)[:, None]

    @property
    def description(self) -> str:
        """Such as `transformer E256 heads4 L6`, then settings that differ from the summary's."""
        name = "transformer_leaky" if self.leaky else "transformer"
        words = [name, f"E{self.input_dim}", f"heads{self.num_heads}", f"L{len(self.blocks)}"]
        if self.feedforward_dim != 4 * self.input_dim:
            words.append(f"F{self.feedforward_dim}")
        if self.positions != "learned":
            words.append("positionless" if self.positions == "none" else self.positions)
        if self.norm_first:
            words.append("prenorm")
        return " ".join(words)

    def state_bytes(self, num_tokens: int) -> int:
        """Bytes of one sequence's state, which grows with every token; 0 if leaky."""
        if self.leaky:
            return 0
        keys_and_values = 2 * len(self.blocks) * self.input_dim
        return num_tokens * (keys_and_values * self.final_norm.weight.element_size() + 1)

    def flops_per_token(self, num_tokens: int) -> int:
        """As in `Layer`, and the products of the last token with all keys and values."""
        products = 2 * len(self.blocks) * self.input_dim * num_tokens
        return super().flops_per_token(num_tokens) + 2 * products


def _layer_told(width: int) -> str:
    return f"the width of the layer, {width} (model.embedding_dim, if it is the first)"


def _head_faults(width: int, num_heads: int, positions: str) -> list[str]:
    layer = _layer_told(width)
    if width % num_heads:
        return [f"model.num_heads={num_heads}: must divide {layer}"]
    if positions == "rotary" and (width // num_heads) % 2:
        return [f"model.positions=rotary: model.num_heads={num_heads} must divide half of {layer}"]
    return []


def _still_visible(real_BT: Tensor, past_BS: Tensor, reset_BT: Tensor | None) -> Tensor:
    if reset_BT is not None:
        segment_BT = reset_BT.cumsum(1)
        real_BT = real_BT & (segment_BT == segment_BT[:, -1:])
        past_BS = past_BS & (segment_BT[:, -1:] == 0)
    return torch.cat((past_BS, real_BT), dim=1)
