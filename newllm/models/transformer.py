"""The Transformer baseline, with its key-value cache as its state.

Shapes: B batch, T time (tokens), S cached tokens and those of the chunk, E embedding,
N attention heads, D size of a head, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.data.tokenizer import PAD
from newllm.models.initialization import normal
from newllm.models.language_model import (
    LanguageModel,
    State,
    dropout_faults,
    option_faults,
    padding_only_trails,
    raise_faults,
    size_faults,
    surely,
)
from newllm.models.positions import LearnedPositions, RotaryPositions, rotate, token_positions

POSITIONS = ("learned", "rotary", "none")

Cache = tuple[Tensor, Tensor]  # keys and values of one layer, each [B, N, S, D]


class View(NamedTuple):
    """What the queries of a chunk may see; the same in every layer."""

    mask_B1TS: Tensor | None  # bool, true where seen
    is_causal: bool  # each query sees all that came before it, and no mask says so
    rotation: tuple[Tensor, Tensor] | None


class Block(nn.Module):
    """Attention and a feed-forward network, each within a residual connection.

    Normalized after each connection (Vaswani et al. 2017), or before with norm_first.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        norm_first: bool,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_first = norm_first
        self.query_key_value = nn.Linear(embedding_dim, 3 * embedding_dim)
        self.attention_output = nn.Linear(embedding_dim, embedding_dim)
        self.expand = nn.Linear(embedding_dim, feedforward_dim)
        self.contract = nn.Linear(feedforward_dim, embedding_dim)
        self.attention_norm = nn.LayerNorm(embedding_dim)
        self.feedforward_norm = nn.LayerNorm(embedding_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_BTE: Tensor, view: View, past: Cache | None) -> tuple[Tensor, Cache]:
        """Return the new hidden vectors [B, T, E] and the keys and values to remember."""
        if self.norm_first:
            change_BTE, cache = self._attend(self.attention_norm(hidden_BTE), view, past)
            hidden_BTE = hidden_BTE + change_BTE
            return hidden_BTE + self._feed_forward(self.feedforward_norm(hidden_BTE)), cache
        change_BTE, cache = self._attend(hidden_BTE, view, past)
        hidden_BTE = self.attention_norm(hidden_BTE + change_BTE)
        return self.feedforward_norm(hidden_BTE + self._feed_forward(hidden_BTE)), cache

    def _attend(self, hidden_BTE: Tensor, view: View, past: Cache | None) -> tuple[Tensor, Cache]:
        query, key, value = (
            part_BTE.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part_BTE in self.query_key_value(hidden_BTE).chunk(3, dim=-1)
        )
        if view.rotation is not None:
            query, key = rotate(query, view.rotation), rotate(key, view.rotation)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        attended_BNTD = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=view.mask_B1TS,
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=view.is_causal,
        )
        change_BTE = self.attention_output(attended_BNTD.transpose(1, 2).flatten(2))
        return self.dropout(change_BTE), (key, value)

    def _feed_forward(self, hidden_BTE: Tensor) -> Tensor:
        inner_BTF = self.dropout(F.gelu(self.expand(hidden_BTE)))
        change_BTE: Tensor = self.dropout(self.contract(inner_BTF))
        return change_BTE


class Transformer(LanguageModel):
    """A causal Transformer, or, with leaky=True, the original's mask fault.

    Its state is a flat tuple: bool [B, S], which cached tokens are still visible to their row, then
    the keys and the values [B, N, S, D] of each layer. It grows with every token. A token's
    position is the number of visible tokens before it.

    Args:
        vocabulary_size: V, the number of output classes.
        embedding_dim: E.
        num_heads: N, which must divide E.
        num_layers: blocks.
        feedforward_dim: width inside a block's feed-forward network.
        positions: "learned" (a table of max_length vectors added to the embedding), "rotary" or
            "none".
        max_length: the most tokens learned positions can tell apart; unused without them.
        dropout: probability on attention weights, inside the feed-forward network and at the end
            of both.
        embedding_dropout: probability for each element of the embeddings.
        output_dropout: probability for each element that the output layer reads.
        norm_first: normalize before attention and feed-forward instead of after them.
        leaky: every token sees all real tokens of its sequence, **the future included**: for
            reproducing the published baseline only. Then there is no state.
        initialization: sets the fresh weights in place.

    Raises:
        ValueError: a setting is impossible; one line for each.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int = 256,
        num_heads: int = 4,
        num_layers: int = 6,
        feedforward_dim: int = 1024,
        positions: str = "learned",
        max_length: int = 32,
        dropout: float = 0.1,
        embedding_dropout: float = 0.0,
        output_dropout: float = 0.0,
        norm_first: bool = False,
        leaky: bool = False,
        initialization: Callable[["Transformer"], None] = normal,
    ) -> None:
        super().__init__()
        faults = [
            *size_faults(
                vocabulary_size=vocabulary_size,
                embedding_dim=embedding_dim,
                num_heads=num_heads,
                num_layers=num_layers,
                feedforward_dim=feedforward_dim,
                max_length=max_length,
            ),
            *option_faults("positions", positions, POSITIONS),
            *dropout_faults(
                dropout=dropout, embedding_dropout=embedding_dropout, output_dropout=output_dropout
            ),
        ]
        raise_faults(faults or _head_faults(embedding_dim, num_heads, positions))

        self.vocabulary_size = vocabulary_size
        self.num_heads = num_heads
        self.feedforward_dim = feedforward_dim
        self.norm_first = norm_first
        self.leaky = self.sees_the_future = leaky
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.positions: LearnedPositions | RotaryPositions | None = None
        if positions == "learned":
            self.positions = LearnedPositions(max_length, embedding_dim)
        elif positions == "rotary":
            self.positions = RotaryPositions(embedding_dim // num_heads)
        self.blocks = nn.ModuleList(
            Block(embedding_dim, num_heads, feedforward_dim, dropout, norm_first)
            for _ in range(num_layers)
        )
        self.final_norm = nn.LayerNorm(embedding_dim)
        self.output_dropout = nn.Dropout(output_dropout)
        self.output = nn.Linear(embedding_dim, vocabulary_size)
        initialization(self)

    def forward(
        self, tokens: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Read a chunk, as `LanguageModel` says; a leaky model neither takes nor returns a state.

        Raises:
            ValueError: the sequence outgrows the learned positions, or a leaky model got a state.
        """
        if self.leaky and state is not None:
            raise ValueError("model.leaky=true sees the future, so it cannot continue from a state")
        real_BT = tokens != PAD
        past = None if state is None else tuple(state)
        past_BS = real_BT[:, :0] if past is None else past[0]

        hidden_BTE, rotation = self._embed(tokens, past_BS.sum(1), reset)
        view = self._view(real_BT, past_BS, reset)._replace(rotation=rotation)
        caches: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            layer_past = None if past is None else (past[1 + 2 * layer], past[2 + 2 * layer])
            hidden_BTE, cache = block(hidden_BTE, view, layer_past)
            caches += cache
        logits_BTV = self.output(self.output_dropout(self.final_norm(hidden_BTE)))
        if self.leaky:
            return logits_BTV, None
        return logits_BTV, (_still_visible(real_BT, past_BS, reset), *caches)

    def _embed(
        self, tokens: Tensor, start_B: Tensor, reset_BT: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        embedded_BTE = self.embedding_dropout(self.embedding(tokens))
        if self.positions is None:
            return embedded_BTE, None
        real_BT = tokens != PAD
        position_BT, _ = token_positions(real_BT, start_B, reset_BT)
        if isinstance(self.positions, RotaryPositions):
            return embedded_BTE, self.positions(position_BT)
        return embedded_BTE + self.positions(position_BT, real_BT), None

    def _view(self, real_BT: Tensor, past_BS: Tensor, reset_BT: Tensor | None) -> View:
        alone = past_BS.shape[1] == 0 and reset_BT is None
        if self.leaky and alone and surely(real_BT.all()):
            return View(None, False, None)
        if not self.leaky and alone and padding_only_trails(real_BT):
            return View(None, True, None)
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
        return View(torch.cat((mask_BTS, mask_BTT | itself_TT), dim=2)[:, None], False, None)

    @property
    def description(self) -> str:
        """Such as `transformer E256 heads4 L6`, followed by what deviates from the summary's."""
        name = "transformer_leaky" if self.leaky else "transformer"
        embedding_dim = self.embedding.embedding_dim
        words = [name, f"E{embedding_dim}", f"heads{self.num_heads}", f"L{len(self.blocks)}"]
        if self.feedforward_dim != 4 * embedding_dim:
            words.append(f"F{self.feedforward_dim}")
        if not isinstance(self.positions, LearnedPositions):
            words.append("positionless" if self.positions is None else "rotary")
        if self.norm_first:
            words.append("prenorm")
        return " ".join(words)

    def state_bytes(self, num_tokens: int) -> int:
        """Bytes of one sequence's state, which grows with every token; 0 if leaky."""
        if self.leaky:
            return 0
        keys_and_values = 2 * len(self.blocks) * self.embedding.embedding_dim
        visible = torch.bool.itemsize
        return num_tokens * (keys_and_values * self.embedding.weight.element_size() + visible)

    def flops_per_token(self, num_tokens: int) -> int:
        """As `LanguageModel` says: the last token also meets the keys and values of all."""
        meetings = 2 * len(self.blocks) * self.embedding.embedding_dim * num_tokens
        return super().flops_per_token(num_tokens) + 2 * meetings


def _head_faults(embedding_dim: int, num_heads: int, positions: str) -> list[str]:
    if embedding_dim % num_heads:
        return [f"model.num_heads={num_heads} must divide model.embedding_dim={embedding_dim}"]
    if positions == "rotary" and (embedding_dim // num_heads) % 2:
        return [
            f"model.positions=rotary needs an even head size, but model.embedding_dim="
            f"{embedding_dim} / model.num_heads={num_heads} is {embedding_dim // num_heads}"
        ]
    return []


def _still_visible(real_BT: Tensor, past_BS: Tensor, reset_BT: Tensor | None) -> Tensor:
    if reset_BT is not None:
        segment_BT = reset_BT.cumsum(1)
        real_BT = real_BT & (segment_BT == segment_BT[:, -1:])
        past_BS = past_BS & (segment_BT[:, -1:] == 0)
    return torch.cat((past_BS, real_BT), dim=1)
