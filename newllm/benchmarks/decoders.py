"""Models of equal size that read token by token: fixed states, and a Transformer with a cache.

Shapes: B batch, T time (tokens), S tokens of a cache, N attention heads, K width of a head, D
width, F feedforward, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.benchmarks.workloads import VOCABULARY
from newllm.models.attention import Attention, Block
from newllm.models.cell import ContextCell
from newllm.models.gating import LSTMGating
from newllm.models.initialization import variance_preserving
from newllm.models.language_model import LanguageModel, State
from newllm.models.mingru import MinGRU
from newllm.models.positions import rotary_angles, rotate
from newllm.models.recurrent import Recurrent
from newllm.models.sizes import Budget
from newllm.models.torch_rnn import LSTM

PARAMETERS = 1_000_000
CHUNK = 512  # tokens read at once
CONTEXT, TRANSFORMER = "context model, gated", "Transformer, KV cache"

# Widths in multiples of one that follows from `PARAMETERS`, and what makes the model.
MODELS: dict[str, tuple[Mapping[str, int], Callable[..., LanguageModel]]] = {
    CONTEXT: (
        {"embedding_dim": 1, "context_dim": 2, "hidden_dim": 2},
        partial(
            LanguageModel,
            layers=[partial(Recurrent, cell=ContextCell)],
            num_layers=2,
            gating=LSTMGating,
            normalization=nn.LayerNorm,
            fnn="residual",
        ),
    ),
    "LSTM": (
        {"embedding_dim": 1, "hidden_dim": 2},
        partial(LanguageModel, layers=[LSTM], num_layers=2),
    ),
    "minGRU": (
        {"embedding_dim": 1, "hidden_dim": 1, "feedforward_dim": 1},
        partial(LanguageModel, layers=[MinGRU], num_layers=4),
    ),
    TRANSFORMER: (
        {"embedding_dim": 1, "feedforward_dim": 4},
        partial(
            LanguageModel,
            layers=[Attention],
            num_layers=4,
            num_heads=4,
            norm_first=True,
            positions="rotary",
        ),
    ),
}


def build(name: str, parameters: int = PARAMETERS) -> LanguageModel:
    """A model of about so many parameters, whose widths are multiples of 8."""
    widths, make = MODELS[name]
    torch.manual_seed(0)
    make = partial(make, VOCABULARY, initialization=variance_preserving)
    return make(**Budget(parameters, widths, step=8).sizes(make))


class CachedDecoder:
    """A Transformer that writes into a cache of a fixed size, instead of copying one that grows.

    The layer of newllm is a function of its state, so each of its steps copies all keys and values.

    Args:
        model: with one pre-norm layer of attention and rotary positions, in evaluation mode.
        num_rows: B.
        size: S, the most tokens.

    Attributes:
        caches: keys and values of each block, [2 blocks, B, N, S, K].
    """

    def __init__(self, model: LanguageModel, num_rows: int, size: int) -> None:
        (layer,) = model.layers
        assert isinstance(layer, Attention)
        assert layer.positions == "rotary"
        assert layer.norm_first
        self._model, self._layer = model, layer
        self._head_width = layer.input_dim // layer.num_heads
        shape = 2 * len(layer.blocks), num_rows, layer.num_heads, size, self._head_width
        self.caches = torch.empty(shape)  # takes memory where it is written to

    def step(self, tokens_B: Tensor, position: int) -> Tensor:
        """The logits [B, V] after the token at a position, from 0, whose past is in the cache."""
        hidden_B1D = self._model.embedding(tokens_B[:, None])
        rotation = rotary_angles(torch.tensor([[position]]), self._head_width, hidden_B1D.dtype)
        blocks: list[Block] = list(self._layer.blocks)  # type: ignore[arg-type]
        for block, (keys, values) in zip(blocks, self.caches.unflatten(0, (-1, 2)), strict=True):
            query, key, value = (
                part_B1D.unflatten(-1, (self._layer.num_heads, -1)).transpose(1, 2)
                for part_B1D in block.query_key_value(block.attention_norm(hidden_B1D)).chunk(3, -1)
            )
            keys[:, :, position] = rotate(key, rotation)[:, :, 0]
            values[:, :, position] = value[:, :, 0]
            attended_BN1K = F.scaled_dot_product_attention(
                rotate(query, rotation), keys[:, :, : position + 1], values[:, :, : position + 1]
            )
            hidden_B1D = hidden_B1D + block.attention_output(
                attended_BN1K.transpose(1, 2).flatten(2)
            )
            inner_B1F = F.gelu(block.expand(block.feedforward_norm(hidden_B1D)))
            hidden_B1D = hidden_B1D + block.contract(inner_B1F)
        logits_BV: Tensor = self._model.output(self._layer.final_norm(hidden_B1D)[:, 0])
        return logits_BV


class Decoder(ABC):
    """Reads random tokens in chunks, or one by one."""

    def __init__(self, model: LanguageModel, num_rows: int, size: int) -> None:
        self._model = model
        generator = torch.Generator().manual_seed(0)
        shape = num_rows, CHUNK
        self._tokens_BT = torch.randint(4, VOCABULARY, shape, generator=generator)

    @abstractmethod
    def warm_up(self) -> None:
        """Take the memory that a chunk and a token take, and none that later ones need."""

    @abstractmethod
    def read(self, length: int) -> None:
        """Come into the state after `length` tokens."""

    @abstractmethod
    def step(self, position: int) -> None:
        """Read one more token, at a position."""

    def state_bytes(self, length: int) -> int:
        """Of one row, after `length` tokens."""
        return self._model.state_bytes(length)


class _Stateful(Decoder):
    """A model with a fixed state, through its usual interface."""

    def warm_up(self) -> None:
        self.read(CHUNK)

    @torch.inference_mode()
    def read(self, length: int) -> None:
        self._state: State | None = None
        for start in range(0, length, CHUNK):
            tokens_BT = self._tokens_BT[:, : min(CHUNK, length - start)]
            _, self._state = self._model(tokens_BT, self._state)

    @torch.inference_mode()
    def step(self, position: int) -> None:
        token_B1 = self._tokens_BT[:, position % CHUNK, None]
        _, self._state = self._model(token_B1, self._state)


class _Cached(Decoder):
    """A Transformer, whose cache is filled with random numbers: what they are takes no time."""

    def __init__(self, model: LanguageModel, num_rows: int, size: int) -> None:
        super().__init__(model, num_rows, size)
        self._decoder = CachedDecoder(model, num_rows, size)

    def warm_up(self) -> None:
        self.step(0)

    @torch.inference_mode()
    def read(self, length: int) -> None:
        self._decoder.caches[..., :length, :].normal_()

    @torch.inference_mode()
    def step(self, position: int) -> None:
        self._decoder.step(self._tokens_BT[:, position % CHUNK], position)


def decoder(name: str, num_rows: int, size: int, parameters: int) -> Decoder:
    """A model that reads at most `size` tokens in each of `num_rows` rows."""
    kind = _Cached if name == TRANSFORMER else _Stateful
    return kind(build(name, parameters).eval(), num_rows, size)
