"""All steps of a chunk at once, from states that are known or guessed.

Shapes: T time (tokens), B batch, N = T * B rows, E input, H output; a state is [T, B, ...], after
every token, or [T - 1, B, ...], before every token but the first.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, cat
from torch.func import functional_call

from newllm.models.cell import Cell
from newllm.models.layer import State, where_row
from newllm.models.recurrence.reference import Chunk, check_step


class AllSteps:
    """All steps of a chunk, to be taken at once.

    Args:
        cell: the cell.
        chunk: the chunk.
        parameters: used in place of the cell's own, by name.
    """

    def __init__(
        self, cell: Cell, chunk: Chunk, parameters: Mapping[str, Tensor] | None = None
    ) -> None:
        batch_size, self._num_steps, _ = chunk.inputs_BTE.shape
        self._num_rows = self._num_steps * batch_size
        self._cell, self._parameters = cell, dict(parameters or {})
        self._state = chunk.state
        self._inputs_NE = chunk.inputs_BTE.transpose(0, 1).flatten(0, 1)
        self._pad_N, self._reset_N = (
            None if flags_BT is None else flags_BT.t().flatten()
            for flags_BT in (chunk.pad_BT, chunk.reset_BT)
        )
        self._masks = None
        if chunk.masks is not None:
            self._masks = chunk.masks.all(self._num_steps).flatten(1, 2).unbind()

    def first_guess(self) -> State:
        """The state before the chunk, after every token."""
        return tuple(part.detach().expand(self._num_steps, *part.shape) for part in self._state)

    def take(self, before: State) -> tuple[Tensor, State]:
        """The outputs [T, B, H] and the states after all tokens."""
        rows = tuple(
            cat((first[None], part)).flatten(0, 1)
            for first, part in zip(self._state, before, strict=True)
        )
        if self._reset_N is not None:
            rows = where_row(self._reset_N, self._cell.initial_state(self._num_rows), rows)
        arguments = self._inputs_NE, rows, self._masks
        results = functional_call(self._cell, self._parameters, arguments)
        check_step(self._cell, self._num_rows, results, rows)
        output_NH, after, _ = results
        if self._pad_N is not None:
            after = where_row(self._pad_N, rows, after)
        return self._by_step(output_NH), tuple(map(self._by_step, after))

    def _by_step(self, rows: Tensor) -> Tensor:
        return rows.reshape(self._num_steps, -1, *rows.shape[1:])
