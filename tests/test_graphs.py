"""Segments of steps against the plain loop: all of it but the capture, which takes a GPU.

Shapes: B batch, T time (tokens), E input, H output.
"""

import copy
import pickle
from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
from small_models import context_model
from test_compiled import DeltaMemory, E, NoisyCell
from test_contract import CELLS
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.models.cell import Cell, ContextCell
from newllm.models.gating import LSTMGating
from newllm.models.layer import State
from newllm.models.recurrence import graphs
from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.graphs import Graphs, Segments
from newllm.models.recurrence.reference import MASK_BLOCK, Chunk, DropoutMasks, Recurrence, roll


def results(
    carry: Recurrence,
    cell: Cell,
    batch_size: int,
    num_steps: int = 11,
    seed: int = 1,
    flags: Sequence[Tensor | None] = (None, None),
) -> list[Tensor]:
    """Outputs, state and gradients; `flags` are padding and resets."""
    torch.manual_seed(seed)
    weight = next(cell.parameters())
    inputs_BTE = torch.randn(batch_size, num_steps, cell.input_dim).to(weight).requires_grad_()
    state = tuple(part.clone() for part in cell.initial_state(batch_size))
    floats = [part.normal_().requires_grad_() for part in state if part.is_floating_point()]
    masks = DropoutMasks.draw(cell, inputs_BTE)
    y_BTH, after = carry(cell, Chunk(inputs_BTE, state, masks, *flags))
    if flags[0] is not None:
        y_BTH = y_BTH.masked_fill(flags[0][:, :, None], 0)
    loss = y_BTH.float().cos().sum() + after[0].square().sum()
    learned = [inputs_BTE, *floats, *cell.parameters()]
    grads = torch.autograd.grad(loss, learned, allow_unused=True, materialize_grads=True)
    return [y_BTH.detach(), *(part.detach() for part in after), *grads]


def segments_of(carry: Graphs) -> Segments:
    """Those of the last cell, which must not have been left to the plain loop."""
    segments = list(carry._kinds.values())[-1]
    assert segments is not None
    return segments


def gated(dropout: float = 0.2) -> ContextCell:
    torch.manual_seed(0)
    return ContextCell(E, 4, 6, 3, dropout, gating=LSTMGating, normalization=nn.LayerNorm).double()


@pytest.mark.parametrize("name", ["used twice", *CELLS])
def test_equals_the_plain_loop(name: str) -> None:
    """Values and gradients, with padding, resets, masks, and a state from before."""
    torch.manual_seed(0)
    cell = (DeltaMemory(E) if name == "used twice" else CELLS[name]()).double()
    for parameter in cell.parameters():
        nn.init.normal_(parameter, std=0.5)
    carry = Graphs()
    pad_BT, reset_BT = (torch.rand(3, 11) < 0.3 for _ in range(2))
    for flags in product((None, pad_BT), (None, reset_BT)):
        found, expected = (results(each, cell, 3, flags=flags) for each in (carry, roll))
        torch.testing.assert_close(found, expected)
    assert segments_of(carry)._free[16]


@pytest.mark.parametrize("num_steps", [4, 8, MASK_BLOCK, MASK_BLOCK + 1, 2 * MASK_BLOCK + 9])
def test_steps_in_segments_of_a_few_sizes(num_steps: int) -> None:
    cell, carry = gated(), Graphs()
    found = results(carry, cell, 2, num_steps)
    torch.testing.assert_close(found, results(roll, cell, 2, num_steps))
    assert all(size % graphs.GRAIN == 0 for size in segments_of(carry)._free)


def test_segments_are_used_again_by_smaller_batches_and_later_steps() -> None:
    cell, carry = gated(), Graphs()
    for seed, batch_size in enumerate((3, 1, 2, 3)):
        found = results(carry, cell, batch_size, seed=seed)
        torch.testing.assert_close(found, results(roll, cell, batch_size, seed=seed))
        with torch.no_grad():  # as an optimizer does
            for parameter in cell.parameters():
                parameter.mul_(1.1)
    assert {size: len(free) for size, free in segments_of(carry)._free.items()} == {8: 1, 16: 1}


def test_larger_batches_and_other_settings_get_segments_of_their_own() -> None:
    cell, carry = DeltaMemory(E).double(), Graphs()
    for change in ({}, {"decay": 0.5}, {"dropout": 0.0}, {"training": False}):
        for name, value in change.items():
            setattr(cell, name, value)
        for batch_size in (1, 3):
            found = results(carry, cell, batch_size)
            torch.testing.assert_close(found, results(roll, cell, batch_size))
    assert len(carry._kinds) <= graphs.MAX_KINDS


def test_cells_that_share_it_do_not_lose_their_segments() -> None:
    carry, cells = Graphs(), [gated() for _ in range(graphs.MAX_KINDS + 1)]
    for cell in cells:
        results(carry, cell, 2)
    first = dict(carry._kinds)
    for cell in cells:
        results(carry, cell, 2)
    assert len(first) == len(cells)
    assert all(carry._kinds[kind] is segments for kind, segments in first.items())


def test_weights_that_move_get_segments_of_their_own() -> None:
    cell, carry = gated(), Graphs()
    results(carry, cell, 2)
    for parameter in cell.parameters():
        parameter.data = 2 * parameter.data
    torch.testing.assert_close(results(carry, cell, 2), results(roll, cell, 2))


def test_two_graphs_alive_at_once_do_not_share_memory() -> None:
    cell, carry = gated(dropout=0), Graphs()
    inputs = [torch.randn(2, 9, E, dtype=torch.double, requires_grad=True) for _ in range(2)]
    pairs = [
        [read(cell, Chunk(each, cell.initial_state(2)))[0].square().sum() for each in inputs]
        for read in (carry, roll)
    ]
    for order in (0, 1):
        found, expected = (torch.autograd.grad(pair[order], inputs[order]) for pair in pairs)
        torch.testing.assert_close(found, expected)


def test_backward_twice() -> None:
    cell, carry = gated(dropout=0), Graphs()
    inputs = torch.randn(2, 9, E, dtype=torch.double, requires_grad=True)
    loss = carry(cell, Chunk(inputs, cell.initial_state(2)))[0].square().sum()
    first, second = (torch.autograd.grad(loss, inputs, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second)
    carry(cell, Chunk(inputs, cell.initial_state(2)))
    with pytest.raises(RuntimeError, match=r"a second backward pass .* comes too late"):
        loss.backward()


def test_a_weight_changed_before_backward_is_an_error() -> None:
    cell = gated(dropout=0)
    outputs_BTH, _ = Graphs()(cell, Chunk(torch.randn(2, 9, E).double(), cell.initial_state(2)))
    with torch.no_grad():
        cell.input.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs_BTH.sum().backward()


@pytest.mark.parametrize("frozen", ["all", "linears", "inputs"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    cell = gated(dropout=0)
    for module in cell.modules():
        if frozen == "all" or (frozen == "linears" and isinstance(module, nn.Linear)):
            module.requires_grad_(False)
    inputs = torch.randn(2, 9, E, dtype=torch.double, requires_grad=frozen != "inputs")
    learned = [each for each in (inputs, *cell.parameters()) if each.requires_grad]
    found, expected = (
        torch.autograd.grad(
            carry(cell, Chunk(inputs, cell.initial_state(2)))[0].square().sum(), learned
        )
        for carry in (Graphs(), roll)
    )
    torch.testing.assert_close(found, expected)


def test_bfloat16_as_autocast_computes_it() -> None:
    cell, carry = gated().float(), Graphs()
    for seed in (1, 2):  # the second time, from weights that have changed
        found: list[Tensor] = []
        expected: list[Tensor] = []
        for read, into in ((carry, found), (roll, expected)):
            with torch.autocast("cpu", torch.bfloat16):
                into += results(read, cell, 2, MASK_BLOCK + 3, seed)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            assert float((one - other).norm()) <= 0.03 * float(other.norm()) + 1e-6
        with torch.no_grad():
            cell.input.weight.mul_(-1)
    assert segments_of(carry).constants.dtype == torch.bfloat16


class InPlace(DeltaMemory):
    """Changes the output of a Linear."""

    def forward(
        self, inputs_BE: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        output_BH, state, gates = super().forward(inputs_BE, state, list(masks or ()) or None)
        return output_BH + self.value(inputs_BE).tanh_(), state, gates


class Unseen(DeltaMemory):
    """Reads the weight of a Linear without calling it."""

    def forward(
        self, inputs_BE: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        output_BH, state, gates = super().forward(inputs_BE, state, list(masks or ()) or None)
        return output_BH + F.linear(inputs_BE, self.value.weight), state, gates


class Curious(DeltaMemory):
    """Asks for a value, and fails where it is asked to compute one at a time."""

    def forward(
        self, inputs_BE: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        if type(self.value.forward).__name__ == "partial":
            raise RuntimeError("no value\nof this tensor")
        return super().forward(inputs_BE, state, list(masks or ()) or None)


@pytest.mark.parametrize(
    ("cell_class", "reason"),
    [
        (NoisyCell, "its step draws random numbers"),
        (InPlace, "its steps give other values than the cell"),
        (Unseen, "its steps give other values than the cell"),
        (Curious, "no value"),
    ],
)
def test_what_cannot_be_captured_takes_the_plain_loop(
    cell_class: Callable[[int], Cell], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    cell, carry = cell_class(E).double(), Graphs()
    for _ in range(2):
        torch.testing.assert_close(results(carry, cell, 2), results(roll, cell, 2))
    line = f"{type(cell).__name__}: steps cannot be captured, and take longer; {reason}"
    assert capfd.readouterr().err.splitlines() == [line]


def test_random_numbers_stay_and_without_gradients_the_plain_loop_does() -> None:
    cell, carry = gated(), Graphs()
    inputs = torch.randn(2, 9, E, dtype=torch.double)
    state = torch.get_rng_state()
    with torch.no_grad():
        carry(cell, Chunk(inputs, cell.initial_state(2)))
    assert not carry._kinds
    carry(cell, Chunk(inputs, cell.initial_state(2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_copies_have_segments_of_their_own() -> None:
    carry = Graphs()
    results(carry, gated(), 2)
    for other in (copy.deepcopy(carry), pickle.loads(pickle.dumps(carry))):
        assert not other._kinds


def test_a_model_with_it_trains_in_blocks() -> None:
    """`recompute` calls the backward pass of a block within that of the whole."""
    grads = []
    for recurrence in (Graphs(), roll):
        torch.manual_seed(0)
        model = context_model(20, dropout=0.2, recompute=True, recurrence=recurrence).double()
        tokens_BT = torch.randint(4, 20, (2, MASK_BLOCK + 5))
        loss_BT, _, _ = model.score(tokens_BT, tokens_BT)
        loss_BT.sum().backward()
        grads.append([weight.grad for weight in model.parameters()])
    torch.testing.assert_close(*grads)


def test_a_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    carry = Fused()
    called: list[Cell] = []
    monkeypatch.setattr(carry, "_graphs", lambda cell, chunk: called.append(cell))

    class OnGPU:
        device, shape = torch.device("cuda"), (2, 9, E)

    cell = gated()
    carry(cell, Chunk(OnGPU(), cell.initial_state(2)))  # type: ignore[arg-type]
    assert called == [cell]
