"""The classic recurrent networks: torch.nn.LSTM, torch.nn.GRU and torch.nn.RNN as layers.

Shapes: B batch, T time (tokens), D input, L layers, H hidden.
"""

from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from newllm.config.faults import raise_faults, too_small
from newllm.models.layer import (
    Layer,
    State,
    padding_only_trails,
    real_tokens,
    surely,
    where_row,
    zeros,
)
from newllm.models.settings import dropout_faults

PACKING_PAYS = 4  # tokens to a piece, below which packed rows are faster on a CPU


class TorchRNN(Layer):
    """One of torch's recurrent networks; the state is tensors [B, L, H].

    Args:
        input_dim: D.
        hidden_dim: H.
        num_layers: L.
        dropout: probability after every layer but the last.

    Raises:
        ValueError: a setting is impossible; one line for each.
    """

    network_class: ClassVar[type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]]

    def __init__(
        self, input_dim: int, hidden_dim: int, num_layers: int, dropout: float = 0.0
    ) -> None:
        sizes = too_small("model", 1, hidden_dim=hidden_dim, num_layers=num_layers)
        raise_faults([*sizes, *dropout_faults(dropout=dropout)])
        super().__init__(input_dim, hidden_dim)
        self.network = self.network_class(
            input_dim,
            hidden_dim,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,  # torch warns of dropout without effect
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read a chunk: at once between tokens where a row changes, or packed."""
        initial = self.initial_state(x_BTD.shape[0])
        state = initial if state is None else state
        if reset_BT is None and pad_BT is None:
            return self._run(x_BTD, state)
        real_BT = real_tokens(x_BTD, pad_BT)
        starts = _starts(real_BT, reset_BT)
        if reset_BT is None and _is_for_packing(real_BT, len(starts)):
            return self._run_packed(x_BTD, state, real_BT)
        hiddens = []
        for start, end in pairwise([*starts, x_BTD.shape[1]]):
            if reset_BT is not None:
                state = where_row(reset_BT[:, start], initial, state)
            hidden_BTH, after = self._run(x_BTD[:, start:end], state)
            state = where_row(real_BT[:, start], after, state)
            hiddens.append(hidden_BTH)
        return torch.cat(hiddens, dim=1), state

    def _run_packed(self, x_BTD: Tensor, state: State, real_BT: Tensor) -> tuple[Tensor, State]:
        length_B = real_BT.sum(1).cpu()
        packed = pack_padded_sequence(x_BTD, length_B, batch_first=True, enforce_sorted=False)
        hidden, state = self._run(packed, state)
        total = x_BTD.shape[1]
        return pad_packed_sequence(hidden, batch_first=True, total_length=total)[0], state

    def initial_state(self, batch_size: int) -> State:
        """Zeros [B, L, H]."""
        return (zeros(self, batch_size, self.network.num_layers, self.output_dim),)

    def _run(self, inputs: Any, state: State) -> tuple[Any, State]:
        # torch puts layers first, and takes a single tensor without a tuple around it.
        layers_first = tuple(part_BLH.transpose(0, 1).contiguous() for part_BLH in state)
        is_single = len(state) == 1
        outputs, final = self.network(inputs, layers_first[0] if is_single else layers_first)
        finals = (final,) if is_single else final
        return outputs, tuple(part_LBH.transpose(0, 1) for part_LBH in finals)

    @property
    def description(self) -> str:
        """Such as `lstm E128 H256 L3`."""
        name = type(self).__name__.lower()
        return f"{name} E{self.input_dim} H{self.output_dim} L{self.network.num_layers}"


class LSTM(TorchRNN):
    """Long short-term memory with forget gate (Gers et al. 2000); state (hidden, cell)."""

    network_class = nn.LSTM

    def initial_state(self, batch_size: int) -> State:
        """Zeros [B, L, H] twice."""
        return super().initial_state(batch_size) + super().initial_state(batch_size)


class GRU(TorchRNN):
    """Gated recurrent units (Cho et al. 2014); state (hidden,)."""

    network_class = nn.GRU


class Elman(TorchRNN):
    """The simple recurrent network with tanh (Elman 1990); state (hidden,)."""

    network_class = nn.RNN


def _starts(real_BT: Tensor, reset_BT: Tensor | None) -> list[int]:
    """Tokens from which on no row begins, ends or goes on before the next; all if not known."""
    is_start_BT = F.pad(real_BT[:, 1:] != real_BT[:, :-1], (1, 0), value=True)
    if reset_BT is not None:
        is_start_BT = is_start_BT | reset_BT
    is_start_T = is_start_BT.any(0)
    # A loop over the tokens would take longer than waiting.
    if surely(is_start_T[0], worth_waiting=True):
        starts: list[int] = is_start_T.nonzero()[:, 0].tolist()
        return starts
    return [*range(len(is_start_T))]


def _is_for_packing(real_BT: Tensor, num_pieces: int) -> bool:
    """Whether rows that only end are faster if they are packed.

    On a CPU, torch takes packed rows step by step, several times slower than rows of equal length.
    """
    if real_BT.is_cpu and num_pieces * PACKING_PAYS < real_BT.shape[1]:
        return False
    begins_real = surely(real_BT[:, 0].all(), worth_waiting=True)
    return begins_real and padding_only_trails(real_BT, worth_waiting=True)
