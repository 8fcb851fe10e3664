"""Models of every kind, small unless told otherwise, as several tests need them."""

from collections.abc import Callable
from functools import partial
from typing import Any

from newllm.models.attention import Attention
from newllm.models.cell import ContextCell
from newllm.models.context_attention import ContextAttention
from newllm.models.delta import DeltaCell
from newllm.models.language_model import LanguageModel
from newllm.models.layer import Layer
from newllm.models.linear_delta import LinearDelta
from newllm.models.mingru import MinGRU
from newllm.models.recurrent import Recurrent
from newllm.models.torch_rnn import LSTM

context_layer = partial(Recurrent, cell=ContextCell)
CONTEXT = {"context_dim": 8, "hidden_dim": 10, "num_layers": 3}
ATTENTION = {"num_heads": 2, "num_layers": 2, "feedforward_dim": 12}
RNN = {"hidden_dim": 8, "num_layers": 2}


def context_model(vocabulary_size: int, embedding_dim: int = 6, **settings: Any) -> LanguageModel:
    """One recurrent layer of the context cell."""
    return LanguageModel(vocabulary_size, embedding_dim, [context_layer], **CONTEXT | settings)


def transformer(vocabulary_size: int, embedding_dim: int = 8, **settings: Any) -> LanguageModel:
    """One stack of attention blocks, with learned positions."""
    settings = {"positions": "learned", **ATTENTION, **settings}
    return LanguageModel(vocabulary_size, embedding_dim, [Attention], **settings)


def rnn_model(
    vocabulary_size: int, layer: type[Layer] = LSTM, embedding_dim: int = 6, **settings: Any
) -> LanguageModel:
    """One of torch's recurrent networks."""
    return LanguageModel(vocabulary_size, embedding_dim, [layer], **RNN | settings)


def mingru_model(vocabulary_size: int, **settings: Any) -> LanguageModel:
    """Two blocks of minGRU."""
    return rnn_model(vocabulary_size, MinGRU, **{"feedforward_dim": 10} | settings)


def delta_model(vocabulary_size: int, **settings: Any) -> LanguageModel:
    """One recurrent layer of the delta memory."""
    cell = partial(DeltaCell, num_heads=2, num_factors=2)
    layer = partial(Recurrent, cell=cell)
    return LanguageModel(vocabulary_size, 6, [layer], **CONTEXT | settings)


def linear_delta_model(vocabulary_size: int, **settings: Any) -> LanguageModel:
    """Two blocks of DeltaNet."""
    settings = {"num_heads": 2, "feedforward_dim": 10} | settings
    return rnn_model(vocabulary_size, LinearDelta, **settings)


def context_attention_model(vocabulary_size: int, **settings: Any) -> LanguageModel:
    """Attention to the contexts at the end of every second token."""
    layer = partial(ContextAttention, cell=ContextCell, block_length=2)
    sizes = {"num_heads": 2, "feedforward_dim": 12}
    return LanguageModel(vocabulary_size, 6, [layer], **CONTEXT | sizes | settings)


def hybrid(
    vocabulary_size: int, attention: Callable[..., Layer] = Attention, **settings: Any
) -> LanguageModel:
    """Attention upon a context cell, of one block each."""
    attention = partial(attention, num_heads=2, feedforward_dim=12)
    return LanguageModel(
        vocabulary_size, 6, [context_layer, attention], **CONTEXT | {"hidden_dim": 12} | settings
    )
