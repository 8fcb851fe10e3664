"""The contract of a layer: it reads a sequence, writes a sequence, and carries a state.

Shapes: B batch, T time (tokens), D width.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]
MANY_TOKENS = 1 << 20  # after which every state that grows has grown, for `Layer.state_bytes`


class Layer(nn.Module, ABC):
    """A map from sequences [B, T, input_dim] to sequences [B, T, output_dim].

    Reading token by token, chunk by chunk or all at once gives the same outputs and the same state,
    and no later token changes an earlier output. `newllm.models.contract.check_layer` tests this
    contract.

    Attributes:
        input_dim: width of the input.
        output_dim: width of the output.
        sees_the_future: true only for a layer that breaks this rule on purpose.
    """

    sees_the_future = False

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.output_dim = output_dim

    @abstractmethod
    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Read a chunk.

        Args:
            x_BTD: the chunk, [B, T, input_dim] with T >= 1.
            state: returned by an earlier call; None means `initial_state`.
            pad_BT: bool, true at padding, which leaves the state of its row as it was; the output
                there means nothing. None means no padding.
            reset_BT: bool, true where the row forgets everything before it reads that token. None
                means nowhere.

        Returns:
            The outputs [B, T, output_dim], and the state after the chunk.
        """

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state before the first token: a fixed number of tensors, B first."""

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token [B, input_dim], without branches on values, so that it can be exported."""
        y_B1D, state = self(x_BD[:, None], state)
        return y_B1D[:, 0], state

    def state_bytes(self, num_tokens: int) -> int:
        """Bytes of one sequence's state after `num_tokens` tokens; constant by default."""
        return sum(tensor.nbytes for tensor in self.initial_state(1))

    def state_bits(self, num_tokens: int) -> float:
        """Bits that this state can hold: those of its bytes, unless it is quantized."""
        return 8 * self.state_bytes(num_tokens)

    def flops_per_token(self, num_tokens: int) -> int:
        """Forward operations for the last of `num_tokens` tokens of one sequence.

        Counts products with weight matrices only; a multiply-add is two operations.
        """
        matrices = sum(weight.numel() for weight in self.parameters() if weight.dim() == 2)
        tables = sum(
            module.weight.numel() for module in self.modules() if isinstance(module, nn.Embedding)
        )
        return 2 * (matrices - tables)

    @property
    def description(self) -> str:
        """The layer as named in the names of runs."""
        return f"{type(self).__name__.lower()} H{self.output_dim}"


def zeros(module: nn.Module, *shape: int) -> Tensor:
    """Zeros with the type and device of a module's weights."""
    return next(module.parameters()).new_zeros(shape)


def real_tokens(x_BTD: Tensor, pad_BT: Tensor | None) -> Tensor:
    """Bool [B, T], true where there is no padding."""
    return x_BTD.new_ones(x_BTD.shape[:2], dtype=torch.bool) if pad_BT is None else ~pad_BT


def where_row(condition_B: Tensor, state: State, other: State) -> State:
    """`state` in the rows where the condition holds, `other` elsewhere."""
    return tuple(
        torch.where(condition_B.view(-1, *[1] * (mine.dim() - 1)), mine, theirs)
        for mine, theirs in zip(state, other, strict=True)
    )


def check_shapes(name: str, output: Tensor, shape: tuple[int, ...], state: State) -> None:
    """Check the output and the state that a part of a model returned.

    Raises:
        ValueError: the output has another shape, or the state is no tuple of tensors, B first.
    """
    if not isinstance(output, Tensor) or output.shape != shape:
        raise ValueError(f"{name}: its output must be {list(shape)}, but is {_shape(output)}")
    is_tuple = isinstance(state, tuple) and all(isinstance(part, Tensor) for part in state)
    if not is_tuple or any(part.dim() < 1 or part.shape[0] != shape[0] for part in state):
        found = ", ".join(map(_shape, state)) if is_tuple else _shape(state)
        raise ValueError(
            f"{name}: its state must be a tuple of tensors whose first dimension is the batch, "
            f"{shape[0]}, but is {found}"
        )


def _shape(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def surely(condition: Tensor, worth_waiting: bool = False) -> bool:
    """Whether a condition is known to hold, for shortcuts that change no result.

    No value is known during an export and on the device `meta`. The value on an accelerator is only
    read if it is `worth_waiting` until all that was started there is done.
    """
    is_known = condition.is_cpu or (worth_waiting and not condition.is_meta)
    return is_known and not torch.compiler.is_exporting() and bool(condition)


def padding_only_trails(real_BT: Tensor, worth_waiting: bool = False) -> bool:
    """Whether it is known, as in `surely`, that no row has a real token after padding."""
    is_single = real_BT.shape[1] == 1  # known during an export as well
    return is_single or surely((real_BT[:, 1:] <= real_BT[:, :-1]).all(), worth_waiting)
