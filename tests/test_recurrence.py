"""The plain loop and the dropout masks: what a recurrence is specified by.

Shapes: B batch, T time (tokens), E input, C context, H hidden.
"""

import pytest
import torch
from torch import Tensor, nn

from newllm.models.cell import Cell, ContextCell
from newllm.models.gating import LSTMGating
from newllm.models.layer import State
from newllm.models.recurrence.reference import MASK_BLOCK, Chunk, DropoutMasks, Reference, roll
from newllm.models.recurrent import Recurrent

B, T, E, C, H = 2, 5, 3, 4, 6


def make_cell(fnn: str = "plain", dropout: float = 0.0) -> ContextCell:
    torch.manual_seed(0)
    return ContextCell(E, C, H, 3, dropout, fnn, None, LSTMGating, nn.LayerNorm).double()


def make_input(num_steps: int = T) -> tuple[Tensor, State]:
    torch.manual_seed(1)
    return torch.randn(B, num_steps, E).double(), (torch.randn(B, C).double(),)


def test_takes_the_steps_in_order() -> None:
    cell = make_cell()
    inputs_BTE, state = make_input()
    outputs_BTH, end = Reference()(cell, Chunk(inputs_BTE, state))
    for t in range(T):
        hidden_BH, state, _ = cell(inputs_BTE[:, t], state)
        assert torch.equal(outputs_BTH[:, t], hidden_BH)
    assert torch.equal(end[0], state[0])


def test_reset_comes_before_the_token_and_pad_keeps_what_reset_left() -> None:
    cell = make_cell()
    inputs_BTE, state = make_input(3)
    pad_BT = torch.tensor([[False, True, False], [False, True, False]])
    reset_BT = torch.tensor([[False, True, False], [False, False, True]])
    seen: list[Tensor] = []

    def watch(t: int, state: State, gates: dict[str, Tensor]) -> State:
        seen.append(state[0])
        return state

    roll(cell, Chunk(inputs_BTE, state, None, pad_BT, reset_BT), watch)
    assert torch.equal(seen[1][0], torch.zeros(C).double())
    assert torch.equal(seen[1][1], seen[0][1])
    _, (fresh_BC,), _ = cell(inputs_BTE[:, 2], cell.initial_state(B))
    torch.testing.assert_close(seen[2], fresh_BC)


def test_intervention_is_recorded_and_read_by_the_next_token() -> None:
    layer = Recurrent(E, lambda input_dim: make_cell())
    inputs_BTE, state = make_input()
    replacement_BC = torch.full((B, C), 0.5).double()
    found = layer.trace(
        inputs_BTE, state, intervene=lambda t, context_BC: replacement_BC if t == 2 else context_BC
    )
    untouched = layer.trace(inputs_BTE, state)
    assert torch.equal(found.outputs_BTD[:, :3], untouched.outputs_BTD[:, :3])
    assert torch.equal(found.contexts_BTC[:, 2], replacement_BC)
    hidden_BH, _, gates = layer.cell(inputs_BTE[:, 3], (replacement_BC,))
    assert torch.equal(found.outputs_BTD[:, 3], hidden_BH)
    assert torch.equal(found.gates["forget"][:, 3], gates["forget"])
    assert torch.equal(found.gates["input"][:, 3], gates["input"])


class Pair(Cell):
    """A state of a matrix, a number and a count."""

    def __init__(self) -> None:
        super().__init__(E, 1)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs_BE, state, masks=None):  # type: ignore[no-untyped-def]
        matrix_B23, number_B1, count_B = state
        after = matrix_B23 + inputs_BE[:, None], number_B1 * self.weight + 1, count_B + 1
        return number_B1 + matrix_B23.sum((1, 2))[:, None], after, {}

    def initial_state(self, batch_size: int) -> State:
        weight = self.weight
        count_B = weight.new_zeros(batch_size).long()
        return weight.new_zeros(batch_size, 2, 3), weight.new_zeros(batch_size, 1), count_B


def test_an_intervention_sees_any_state_as_one_vector() -> None:
    layer = Recurrent(E, lambda input_dim: Pair())
    inputs_BTE = torch.zeros(B, 3, E)
    seen: list[Tensor] = []

    def intervene(t: int, context_BC: Tensor) -> Tensor:
        seen.append(context_BC.detach())
        return torch.arange(7.0).expand(B, -1) if t == 1 else context_BC

    found = layer.trace(inputs_BTE, intervene=intervene)
    assert found.contexts_BTC.shape == (B, 3, 7)
    assert found.outputs_BTD[0, 2].item() == sum(range(7))
    assert [float(context_BC[0, 6]) for context_BC in seen] == [1, 2, 7]
    matrix_B23, _, count_B = found.state
    assert matrix_B23[0].flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert count_B.tolist() == [3, 3]


class Wrong(Pair):
    """It returns what it is told to."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.change = change

    def forward(self, inputs_BE, state, masks=None):  # type: ignore[no-untyped-def]
        output_B1, after, gates = super().forward(inputs_BE, state, masks)
        if self.change == "output":
            return output_B1[:, 0], after, gates
        if self.change == "tensor":
            return output_B1, after[0], gates
        if self.change == "shape":
            return output_B1, (after[0].flatten(1), *after[1:]), gates
        return output_B1, tuple(part.sum(0) for part in after), gates


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("output", r"Wrong \(wrong H1\): its output must be \[2, 1\], but is \[2\]"),
        ("tensor", r"Wrong \(wrong H1\): its state must be a tuple .* but is \[2, 2, 3\]"),
        ("shape", r"keep the shapes and types of its state, \[\(\[2, 2, 3\], .* not \[\(\[2, 6\]"),
        ("batch", r"its state must be a tuple of tensors whose first dimension is the batch, 2"),
    ],
)
def test_shapes_of_a_cell_are_told_with_its_name(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recurrent(E, lambda input_dim: Wrong(change))(torch.zeros(B, 3, E))


@pytest.mark.parametrize("fnn", ["plain", "residual"])
def test_masks_are_replayed_by_the_seed(fnn: str) -> None:
    cell = make_cell(fnn, dropout=0.4)
    num_steps = MASK_BLOCK + 3
    inputs_BTE, _ = make_input(num_steps)
    masks = DropoutMasks.draw(cell, inputs_BTE)
    assert masks is not None
    in_order = torch.stack([torch.stack(step) for step in masks.steps(num_steps)], dim=1)
    last, first = masks.starting_at(MASK_BLOCK).block(3), masks.block(MASK_BLOCK)
    assert torch.equal(in_order, torch.cat((first, last), dim=1))
    assert not torch.equal(first[:, :3], last)
    assert in_order.shape == (cell.fnn.num_masks, num_steps, B, H)
    torch.testing.assert_close(in_order.unique(), torch.tensor([0, 1 / 0.6]).double())
    assert float(in_order.mean()) == pytest.approx(1, abs=0.15)


def test_masks_follow_the_global_seed() -> None:
    cell = make_cell(dropout=0.4)
    inputs_BTE, state = make_input()

    def hidden(seed: int) -> Tensor:
        torch.manual_seed(seed)
        masks = DropoutMasks.draw(cell, inputs_BTE)
        return Reference()(cell, Chunk(inputs_BTE, state, masks))[0]

    assert torch.equal(hidden(7), hidden(7))
    assert not torch.equal(hidden(7), hidden(8))


def test_each_step_uses_its_own_masks() -> None:
    cell = make_cell(dropout=0.4)
    inputs_BTE, state = make_input()
    torch.manual_seed(3)
    masks = DropoutMasks.draw(cell, inputs_BTE)
    assert masks is not None
    outputs_BTH, _ = Reference()(cell, Chunk(inputs_BTE, state, masks))
    for t, step_masks in enumerate(masks.steps(T)):
        hidden_BH, state, _ = cell(inputs_BTE[:, t], state, step_masks)
        assert torch.equal(outputs_BTH[:, t], hidden_BH)


def test_nothing_is_drawn_in_evaluation_or_at_probability_zero() -> None:
    inputs_BTE, _ = make_input()
    assert DropoutMasks.draw(make_cell(dropout=0.4).eval(), inputs_BTE) is None
    assert DropoutMasks.draw(make_cell(dropout=0.0), inputs_BTE) is None
    assert DropoutMasks.draw(make_cell(dropout=0.4), inputs_BTE) is not None
