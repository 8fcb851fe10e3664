"""The classic recurrent networks: torch.nn.LSTM, torch.nn.GRU and torch.nn.RNN as layers.

Shapes: B batch, T time (tokens), D input, L layers, H hidden.
"""

from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from newllm.models.layer import (
    Layer,
    State,
    padding_only_trails,
    real_tokens,
    surely,
    where_row,
    zeros,
)
from newllm.models.settings import dropout_faults, raise_faults, size_faults

Inputs = TypeVar("Inputs", Tensor, PackedSequence)


class TorchRNN(Layer):
    """What LSTM, GRU and Elman network share; they differ in the network and its states.

    The state is `num_states` tensors [B, L, H].

    Args:
        input_dim: D.
        hidden_dim: H.
        num_layers: L.
        dropout: probability after every layer but the last.

    Raises:
        ValueError: a setting is impossible; one line for each.
    """

    name: ClassVar[str]
    network_class: ClassVar[type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]]
    num_states: ClassVar[int]

    def __init__(
        self, input_dim: int, hidden_dim: int, num_layers: int, dropout: float = 0.0
    ) -> None:
        sizes = size_faults(hidden_dim=hidden_dim, num_layers=num_layers)
        raise_faults([*sizes, *dropout_faults(dropout=dropout)])
        super().__init__(input_dim, hidden_dim)
        self.network = self.network_class(
            input_dim,
            hidden_dim,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,  # torch warns of what does nothing
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read a chunk, as `Layer` says."""
        state = self.initial_state(x_BTD.shape[0]) if state is None else state
        if reset_BT is None and pad_BT is None:
            return self._run(x_BTD, state)
        real_BT = real_tokens(x_BTD, pad_BT)
        if reset_BT is None and surely(real_BT[:, 0].all()) and padding_only_trails(real_BT):
            return self._run_packed(x_BTD, state, real_BT.sum(1))
        return self._run_stepwise(x_BTD, state, real_BT, reset_BT)

    def initial_state(self, batch_size: int) -> State:
        """Zeros [B, L, H]."""
        shape = batch_size, self.network.num_layers, self.network.hidden_size
        return tuple(zeros(self, *shape) for _ in range(self.num_states))

    def _run(self, inputs: Inputs, state: State) -> tuple[Inputs, State]:
        # torch puts layers first, and takes an only tensor without a tuple around it.
        layer_first = tuple(state_BLH.transpose(0, 1).contiguous() for state_BLH in state)
        given = layer_first if self.num_states > 1 else layer_first[0]
        outputs, final = self.network(inputs, given)
        finals = final if self.num_states > 1 else (final,)
        return outputs, tuple(state_LBH.transpose(0, 1) for state_LBH in finals)

    def _run_packed(self, x_BTD: Tensor, state: State, length_B: Tensor) -> tuple[Tensor, State]:
        packed = pack_padded_sequence(x_BTD, length_B.cpu(), batch_first=True, enforce_sorted=False)
        hidden, state = self._run(packed, state)
        hidden_BTH, _ = pad_packed_sequence(hidden, batch_first=True, total_length=x_BTD.shape[1])
        return hidden_BTH, state

    def _run_stepwise(
        self, x_BTD: Tensor, state: State, real_BT: Tensor, reset_BT: Tensor | None
    ) -> tuple[Tensor, State]:
        hiddens = []
        initial = self.initial_state(x_BTD.shape[0])
        for t in range(x_BTD.shape[1]):
            if reset_BT is not None:
                state = where_row(reset_BT[:, t], initial, state)
            hidden_B1H, after = self._run(x_BTD[:, t : t + 1], state)
            state = where_row(real_BT[:, t], after, state)
            hiddens.append(hidden_B1H)
        return torch.cat(hiddens, dim=1), state

    @property
    def description(self) -> str:
        """Such as `lstm E128 H256 L3`."""
        return f"{self.name} E{self.input_dim} H{self.output_dim} L{self.network.num_layers}"


class LSTM(TorchRNN):
    """Long short-term memory with forget gate (Gers et al. 2000); state (hidden, cell)."""

    name = "lstm"
    network_class = nn.LSTM
    num_states = 2


class GRU(TorchRNN):
    """Gated recurrent units (Cho et al. 2014); state (hidden,)."""

    name = "gru"
    network_class = nn.GRU
    num_states = 1


class Elman(TorchRNN):
    """The simple recurrent network with tanh (Elman 1990); state (hidden,)."""

    name = "elman"
    network_class = nn.RNN
    num_states = 1
