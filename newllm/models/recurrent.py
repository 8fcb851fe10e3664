"""A cell, carried over time.

Shapes: B batch, T time (tokens), D width of the input or output, C all of a cell's state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from newllm.models.cell import Cell
from newllm.models.layer import Layer, State
from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.reference import Chunk, DropoutMasks, Recurrence, roll

Intervene = Callable[[int, Tensor], Tensor]


class Rollout(NamedTuple):
    """What a cell did over a chunk; the context is its whole state as one vector."""

    outputs_BTD: Tensor
    state: State
    contexts_BTC: Tensor  # after each token
    gates: dict[str, Tensor]  # each [B, T, ...]


class Recurrent(Layer):
    """A recurrent layer: any `Cell`, carried over time by a `Recurrence`.

    Args:
        input_dim: width of the input.
        cell: makes the cell from `input_dim` and the settings.
        recurrence: carries it over time; None means `Fused`.
        settings: settings of the cell.
    """

    def __init__(
        self,
        input_dim: int,
        cell: Callable[..., Cell],
        recurrence: Recurrence | None = None,
        **settings: object,
    ) -> None:
        made = cell(input_dim, **settings)
        if not isinstance(made, Cell):
            raise ValueError(f"{type(made).__name__}: is not a Cell, which a recurrent layer needs")
        super().__init__(input_dim, made.output_dim)
        self.cell = made
        self.recurrence = recurrence or Fused()

    def forward(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
        found: list[Tensor] | None = None,
    ) -> tuple[Tensor, State]:
        """Read a chunk; `found` as in `Chunk`."""
        return self.recurrence(self.cell, self._chunk(x_BTD, state, pad_BT, reset_BT, found))

    def _chunk(self, x_BTD: Tensor, state: State | None, *rest: Any) -> Chunk:
        state = self.initial_state(x_BTD.shape[0]) if state is None else state
        return Chunk(x_BTD, state, self.draw_masks(x_BTD), *rest)

    def draw_masks(self, x_BTD: Tensor) -> DropoutMasks | None:
        """The dropout masks of a chunk; None without dropout."""
        return DropoutMasks.draw(self.cell, x_BTD)

    def initial_state(self, batch_size: int) -> State:
        """The initial state of the cell."""
        return self.cell.initial_state(batch_size)

    def state_bits(self, num_tokens: int) -> float:
        """Bits that the state of the cell can hold."""
        bits = self.cell.state_bits
        return super().state_bits(num_tokens) if bits is None else bits

    def trace(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
        intervene: Intervene | None = None,
    ) -> Rollout:
        """Read a chunk by the plain loop, and keep all contexts and gates.

        `intervene(t, context_BC)` returns what replaces the context after token t.
        """
        contexts: list[Tensor] = []
        gates: list[dict[str, Tensor]] = []

        def watch(t: int, state: State, step_gates: dict[str, Tensor]) -> State:
            context_BC = as_vector(state)
            if intervene is not None:
                context_BC = intervene(t, context_BC)
                state = _as_state(context_BC, state)
            contexts.append(context_BC)
            gates.append(step_gates)
            return state

        y_BTD, state = roll(self.cell, self._chunk(x_BTD, state, pad_BT, reset_BT), watch)
        by_name = {name: torch.stack([step[name] for step in gates], 1) for name in gates[0]}
        return Rollout(y_BTD, state, torch.stack(contexts, dim=1), by_name)

    @property
    def description(self) -> str:
        """The description of the cell."""
        return self.cell.description


def as_vector(state: State) -> Tensor:
    """All floating-point numbers of a state as one vector [B, C]."""
    parts = [part.flatten(1) for part in state if part.is_floating_point()]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _as_state(context_BC: Tensor, like: State) -> State:
    """The inverse of `as_vector`; other parts are those of `like`."""
    sizes = [part.flatten(1).shape[1] for part in like if part.is_floating_point()]
    parts = iter(context_BC.split(sizes, dim=1))
    return tuple(next(parts).view_as(part) if part.is_floating_point() else part for part in like)
