"""The classic recurrent baselines over torch.nn.LSTM, torch.nn.GRU and torch.nn.RNN.

Shapes: B batch, T time (tokens), E embedding, L layers, H hidden, V vocabulary.
"""

from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from newllm.data.tokenizer import PAD
from newllm.models.initialization import normal
from newllm.models.language_model import (
    LanguageModel,
    State,
    dropout_faults,
    padding_only_trails,
    raise_faults,
    size_faults,
    surely,
)

Inputs = TypeVar("Inputs", Tensor, PackedSequence)


class RecurrentBaseline(LanguageModel):
    """What LSTM, GRU and Elman network share; they differ in the network and its states.

    The state is a tuple of `num_states` tensors [B, L, H].

    Args:
        vocabulary_size: V, the number of output classes.
        embedding_dim: E.
        hidden_dim: H.
        num_layers: L.
        dropout: probability after every layer, the last one included.
        output_dropout: probability after the last layer, where it is the larger one.
        embedding_dropout: probability for each element of the embeddings.
        initialization: sets the fresh weights in place.

    Raises:
        ValueError: a setting is impossible; one line for each.
    """

    name: ClassVar[str]
    network_class: ClassVar[type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]]
    num_states: ClassVar[int]

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int = 128,
        hidden_dim: int = 256,
        num_layers: int = 3,
        dropout: float = 0.1,
        embedding_dropout: float = 0.0,
        output_dropout: float = 0.0,
        initialization: Callable[["RecurrentBaseline"], None] = normal,
    ) -> None:
        super().__init__()
        sizes = size_faults(
            vocabulary_size=vocabulary_size,
            embedding_dim=embedding_dim,
            hidden_dim=hidden_dim,
            num_layers=num_layers,
        )
        dropouts = dropout_faults(
            dropout=dropout, embedding_dropout=embedding_dropout, output_dropout=output_dropout
        )
        raise_faults([*sizes, *dropouts])

        self.vocabulary_size = vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        # torch's networks drop between layers only, and warn when there is nothing between.
        between = dropout if num_layers > 1 else 0.0
        self.network = self.network_class(
            embedding_dim, hidden_dim, num_layers, batch_first=True, dropout=between
        )
        self.dropout = nn.Dropout(max(dropout, output_dropout))
        self.output = nn.Linear(hidden_dim, vocabulary_size)
        initialization(self)

    def forward(
        self, tokens: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Read a chunk, as `LanguageModel` says."""
        real_BT = tokens != PAD
        embedded_BTE = self.embedding_dropout(self.embedding(tokens))
        states = self._start(embedded_BTE) if state is None else tuple(state)
        if reset is None and surely(real_BT.all()):
            hidden_BTH, states = self._run(embedded_BTE, states)
        elif reset is None and surely(real_BT[:, 0].all()) and padding_only_trails(real_BT):
            hidden_BTH, states = self._run_packed(embedded_BTE, states, real_BT.sum(1))
        else:
            hidden_BTH, states = self._run_stepwise(embedded_BTE, states, real_BT, reset)
        return self.output(self.dropout(hidden_BTH)), states

    def _start(self, embedded_BTE: Tensor) -> tuple[Tensor, ...]:
        shape = embedded_BTE.shape[0], self.network.num_layers, self.network.hidden_size
        return tuple(embedded_BTE.new_zeros(shape) for _ in range(self.num_states))

    def _run(self, inputs: Inputs, states: tuple[Tensor, ...]) -> tuple[Inputs, tuple[Tensor, ...]]:
        # torch puts layers first, and takes an only tensor without a tuple around it.
        layer_first = tuple(state_BLH.transpose(0, 1).contiguous() for state_BLH in states)
        given = layer_first if self.num_states > 1 else layer_first[0]
        outputs, final = self.network(inputs, given)
        finals = final if self.num_states > 1 else (final,)
        return outputs, tuple(state_LBH.transpose(0, 1) for state_LBH in finals)

    def _run_packed(
        self, embedded_BTE: Tensor, states: tuple[Tensor, ...], length_B: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        packed = pack_padded_sequence(
            embedded_BTE, length_B.cpu(), batch_first=True, enforce_sorted=False
        )
        hidden, states = self._run(packed, states)
        hidden_BTH, _ = pad_packed_sequence(
            hidden, batch_first=True, total_length=embedded_BTE.shape[1]
        )
        return hidden_BTH, states

    def _run_stepwise(
        self,
        embedded_BTE: Tensor,
        states: tuple[Tensor, ...],
        real_BT: Tensor,
        reset_BT: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        hiddens = []
        for t in range(embedded_BTE.shape[1]):
            if reset_BT is not None:
                forget_B11 = reset_BT[:, t, None, None]
                states = tuple(state_BLH.masked_fill(forget_B11, 0) for state_BLH in states)
            hidden_B1H, next_states = self._run(embedded_BTE[:, t : t + 1], states)
            real_B11 = real_BT[:, t, None, None]
            states = tuple(
                torch.where(real_B11, new, old)
                for new, old in zip(next_states, states, strict=True)
            )
            hiddens.append(hidden_B1H)
        return torch.cat(hiddens, dim=1), states

    @property
    def description(self) -> str:
        """Such as `lstm E128 H256 L3`."""
        network = self.network
        return f"{self.name} E{network.input_size} H{network.hidden_size} L{network.num_layers}"

    def state_bytes(self, num_tokens: int) -> int:
        """Bytes of one sequence's state, the same after any number of tokens."""
        elements = self.num_states * self.network.num_layers * self.network.hidden_size
        return elements * self.embedding.weight.element_size()


class LSTMModel(RecurrentBaseline):
    """Long short-term memory with forget gate (Gers et al. 2000); state (hidden, cell)."""

    name = "lstm"
    network_class = nn.LSTM
    num_states = 2


class GRUModel(RecurrentBaseline):
    """Gated recurrent units (Cho et al. 2014); state (hidden,)."""

    name = "gru"
    network_class = nn.GRU
    num_states = 1


class ElmanModel(RecurrentBaseline):
    """The simple recurrent network with tanh (Elman 1990); state (hidden,)."""

    name = "elman"
    network_class = nn.RNN
    num_states = 1
