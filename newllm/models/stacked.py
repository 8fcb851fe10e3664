"""Recurrent layers whose contexts are connected: a stack of context cells as one cell.

Shapes: B batch, E input, C context, H hidden.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from newllm.config.faults import raise_faults, too_small
from newllm.models.cell import Cell, ContextCell
from newllm.models.layer import State, zeros
from newllm.models.shortcut import Shortcut


class StackedCell(Cell):
    """Context cells one upon the other; each context also receives the context of the cell below.

        h_t^l = FNN^l(h_t^{l-1}, c_{t-1}^l), with h_t^0 = x_t, for the cells l = 1, 2, ...
        u_t^l = update(h_t^l, c_{t-1}^l)
        c_t^1 = clamp(LN(u_t^1))
        c_t^l = clamp(LN((1 - d_t^l) u_t^l + d_t^l c_t^{l-1})), d_t^l = sigmoid(W^l h_t^l + b^l)

    d^l is the depth gate between the memory cells of adjacent LSTM layers (Yao et al. 2015, arXiv
    1508.03790; Zhang et al. 2015, arXiv 1510.08983), coupled to the update here. Without shortcuts,
    this is a stack of recurrent layers.

    The output is that of the last cell. The state is the context [B, C] of each.

    Args:
        input_dim: E.
        cell: makes a `ContextCell` from the width of its input and the settings.
        num_cells: number of cells.
        shortcuts: whether a context receives the one below.
        settings: settings of the cells.

    Raises:
        ValueError: a setting is impossible.
    """

    def __init__(
        self,
        input_dim: int,
        cell: Callable[..., ContextCell],
        num_cells: int = 2,
        shortcuts: bool = True,
        **settings: Any,
    ) -> None:
        raise_faults(too_small("model", 1, num_cells=num_cells))
        cells = [cell(input_dim, **settings)]
        cells += [cell(cells[0].output_dim, **settings) for _ in range(num_cells - 1)]
        if type(cells[0]).forward is not ContextCell.forward:
            name = type(cells[0]).__name__
            raise ValueError(f"{name}: cannot be stacked; only cells with the step of ContextCell")
        super().__init__(input_dim, cells[0].output_dim)
        self.cells = nn.ModuleList(cells)
        self.context_dim = cells[0].context_dim
        self.shortcuts = nn.ModuleList(
            Shortcut(each.hidden_dim, each.context_dim) for each in cells[1:] if shortcuts
        )
        self.dropout, self.mask_dim = cells[0].dropout, cells[0].mask_dim
        self.num_masks = sum(each.num_masks for each in cells)
        if cells[0].state_bits is not None:
            self.state_bits = num_cells * cells[0].state_bits

    def initial_state(self, batch_size: int) -> State:
        """A context of zeros [B, C] for each cell."""
        shape = batch_size, self.context_dim
        return tuple(zeros(self, *shape) for _ in self.cells)

    def forward(
        self, inputs_BE: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """Take one step; a gate is that of all cells, [B, cells * C]."""
        output, remaining = inputs_BE, iter(masks or ())
        contexts: list[Tensor] = []
        gates: dict[str, list[Tensor]] = defaultdict(list)
        for depth, (cell, own_BC) in enumerate(zip(self.cells, state, strict=True)):
            assert isinstance(cell, ContextCell)
            own_masks = [*islice(remaining, cell.num_masks)] or None
            output = cell.hidden(output, own_BC, own_masks)
            context_BC, own_gates = cell.gating(output, own_BC)
            if depth > 0 and self.shortcuts:
                shortcut = self.shortcuts[depth - 1]
                context_BC, gate_BC = shortcut(output, context_BC, contexts[-1])
                own_gates = own_gates | {"shortcut": gate_BC}
            contexts.append(cell.bounded(context_BC))
            for name, gate_BC in own_gates.items():
                gates[name].append(gate_BC)
        return output, tuple(contexts), {name: torch.cat(all_, -1) for name, all_ in gates.items()}

    @property
    def description(self) -> str:
        """That of the first cell, then the number of cells, and whether they have no shortcuts."""
        words = f"{self.cells[0].description!s} cells{len(self.cells)}"
        return words if self.shortcuts or len(self.cells) == 1 else f"{words} plain"
