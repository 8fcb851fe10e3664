"""The minimal gated recurrent unit, whose gates do not read the state (Feng et al. 2024).

Shapes: B batch, T time (tokens), E embedding, L layers, H hidden, F feedforward, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.data.tokenizer import PAD
from newllm.models.initialization import normal
from newllm.models.language_model import (
    LanguageModel,
    State,
    dropout_faults,
    raise_faults,
    size_faults,
)


class MinGRULayer(nn.Module):
    """state_t = (1 - z_t) * state_{t-1} + z_t * candidate_t, both told by the input alone.

    The candidate is linear, as in the paper's plain form. The loop over time could be a parallel
    scan, which pays on sequences far longer than a sentence.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_dim, hidden_dim)
        self.candidate = nn.Linear(hidden_dim, hidden_dim)

    def forward(
        self, inputs_BTH: Tensor, state_BH: Tensor, real_BT1: Tensor, reset_BT1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The states after every token [B, T, H], and the last [B, H].

        Args:
            inputs_BTH: of this layer.
            state_BH: before the first token.
            real_BT1: 0 where a token is `<PAD>`, which leaves the state as it was.
            reset_BT1: 1 where the state is forgotten before the token is read.
        """
        gate_BTH = torch.sigmoid(self.gate(inputs_BTH)) * real_BT1
        keep_BTH = (1 - gate_BTH) * (1 - reset_BT1)
        written_BTH = gate_BTH * self.candidate(inputs_BTH)
        states = []
        for keep_BH, written_BH in zip(keep_BTH.unbind(1), written_BTH.unbind(1), strict=True):
            state_BH = torch.addcmul(written_BH, keep_BH, state_BH)
            states.append(state_BH)
        return torch.stack(states, dim=1), state_BH


class MinGRUModel(LanguageModel):
    """Blocks of a minGRU and a feed-forward network, each pre-normalized, dropped and added.

    The state is one tensor [B, L, H].

    Args:
        vocabulary_size: V, the number of output classes.
        embedding_dim: E.
        hidden_dim: H.
        num_layers: L.
        feedforward_dim: F.
        dropout: probability before each addition.
        embedding_dropout: probability for each element of the embeddings.
        output_dropout: probability for each element that the output layer reads.
        initialization: sets the fresh weights in place.

    Raises:
        ValueError: a setting is impossible; one line for each.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int = 128,
        hidden_dim: int = 256,
        num_layers: int = 3,
        feedforward_dim: int = 256,
        dropout: float = 0.1,
        embedding_dropout: float = 0.0,
        output_dropout: float = 0.0,
        initialization: Callable[["MinGRUModel"], None] = normal,
    ) -> None:
        super().__init__()
        sizes = size_faults(
            vocabulary_size=vocabulary_size,
            embedding_dim=embedding_dim,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
            feedforward_dim=feedforward_dim,
        )
        dropouts = dropout_faults(
            dropout=dropout, embedding_dropout=embedding_dropout, output_dropout=output_dropout
        )
        raise_faults([*sizes, *dropouts])

        self.vocabulary_size = vocabulary_size
        self.hidden_dim, self.feedforward_dim = hidden_dim, feedforward_dim
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.input = nn.Linear(embedding_dim, hidden_dim)
        layers = range(num_layers)
        self.recurrent_norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in layers)
        self.recurrent = nn.ModuleList(MinGRULayer(hidden_dim) for _ in layers)
        self.feedforward_norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in layers)
        self.feedforward = nn.ModuleList(
            nn.Sequential(
                nn.Linear(hidden_dim, feedforward_dim),
                nn.ReLU(),
                nn.Linear(feedforward_dim, hidden_dim),
            )
            for _ in layers
        )
        self.dropout = dropout
        self.final_norm = nn.LayerNorm(hidden_dim)
        self.output_dropout = nn.Dropout(output_dropout)
        self.output = nn.Linear(hidden_dim, vocabulary_size)
        initialization(self)

    def forward(
        self, tokens: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read a chunk, as `LanguageModel` says."""
        hidden_BTH = self.input(self.embedding_dropout(self.embedding(tokens)))
        real_BT1 = (tokens != PAD).to(hidden_BTH.dtype)[..., None]
        if reset is None:
            reset = torch.zeros_like(tokens, dtype=torch.bool)
        reset_BT1 = reset.to(hidden_BTH.dtype)[..., None]
        if state is None:
            shape = tokens.shape[0], len(self.recurrent), self.hidden_dim
            state = hidden_BTH.new_zeros(shape)
        assert isinstance(state, Tensor)
        finals = []
        for depth, layer in enumerate(self.recurrent):
            normed_BTH = self.recurrent_norms[depth](hidden_BTH)
            read_BTH, final_BH = layer(normed_BTH, state[:, depth], real_BT1, reset_BT1)
            hidden_BTH = hidden_BTH + self._drop(read_BTH)
            fed_BTH = self.feedforward[depth](self.feedforward_norms[depth](hidden_BTH))
            hidden_BTH = hidden_BTH + self._drop(fed_BTH)
            finals.append(final_BH)
        read_BTH = self.output_dropout(self.final_norm(hidden_BTH))
        return self.output(read_BTH), torch.stack(finals, dim=1)

    def _drop(self, values: Tensor) -> Tensor:
        return F.dropout(values, self.dropout, self.training)

    @property
    def description(self) -> str:
        """Such as `mingru E128 H256 L3`; the feed-forward size where it is another."""
        is_wide = self.feedforward_dim != self.hidden_dim
        wide = f" F{self.feedforward_dim}" if is_wide else ""
        sizes = f"E{self.embedding.embedding_dim} H{self.hidden_dim} L{len(self.recurrent)}"
        return f"mingru {sizes}{wide}"

    def state_bytes(self, num_tokens: int) -> int:
        """Bytes of one sequence's state, the same after any number of tokens."""
        return len(self.recurrent) * self.hidden_dim * self.embedding.weight.element_size()
