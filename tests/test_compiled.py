"""The compiled step of any cell: what the plain loop gives, or the plain loop itself."""

import copy
import gc
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.models.cell import Cell
from newllm.models.contract import check_cell
from newllm.models.layer import State
from newllm.models.recurrence.compiled import Compiled
from newllm.models.recurrence.reference import Chunk, DropoutMasks, Reference

E, H, K = 4, 5, 3


class DeltaMemory(Cell):
    """A matrix that is corrected at a key and read by a query, and a count of the tokens.

    It has what a compiled step has to take care of: a state of several tensors, one of them whole
    numbers; a Linear that is used twice, one without a bias; a parameter of another kind; masks.
    """

    num_masks = 1

    def __init__(self, input_dim: int, dropout: float = 0.3, decay: float = 0.9) -> None:
        super().__init__(input_dim, H)
        self.dropout, self.mask_dim, self.decay = dropout, H, decay
        self.key = nn.Linear(input_dim, K, bias=False)
        self.value = nn.Linear(input_dim, H)
        self.output = nn.Linear(H, H)
        self.scale = nn.Parameter(torch.ones(H))

    def initial_state(self, batch_size: int) -> State:
        memory_BKH = self.scale.new_zeros(batch_size, K, H)
        return memory_BKH, torch.zeros(batch_size, dtype=torch.long)

    def forward(
        self, inputs_BE: Tensor, state: State, masks: list[Tensor] | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        memory_BKH, count_B = state
        key_BK = F.normalize(self.key(inputs_BE), dim=-1, eps=1e-3)
        query_BK = self.key(torch.tanh(inputs_BE))
        error_BH = self.value(inputs_BE) - torch.einsum("bk,bkh->bh", key_BK, memory_BKH)
        memory_BKH = self.decay * memory_BKH + key_BK[:, :, None] * error_BH[:, None]
        read_BH = self.scale * torch.einsum("bk,bkh->bh", query_BK, memory_BKH)
        if masks is not None:
            read_BH = read_BH * masks[0]
        output_BH = self.output(read_BH) / (1 + count_B[:, None])
        return output_BH, (memory_BKH, count_B + 1), {"error": error_BH}


class NoisyCell(DeltaMemory):
    """Draws random numbers of its own, which a compiler would draw otherwise."""

    def forward(
        self, inputs_BE: Tensor, state: State, masks: list[Tensor] | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        return super().forward(inputs_BE + torch.randn_like(inputs_BE), state, masks)


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    """One for all tests, since compiling takes seconds."""
    return Compiled()


def results(carry: Compiled | Reference, cell: Cell, batch_size: int) -> list[Tensor]:
    """Outputs and gradients of a chunk of five tokens."""
    torch.manual_seed(1)
    inputs_BTE = torch.randn(batch_size, 5, E, dtype=torch.double, requires_grad=True)
    masks = DropoutMasks.draw(cell, inputs_BTE)
    y_BTH, state = carry(cell, Chunk(inputs_BTE, cell.initial_state(batch_size), masks))
    assert int(state[1].sum()) == 5 * batch_size
    return [
        y_BTH.detach(),
        *torch.autograd.grad(y_BTH.cos().sum(), [inputs_BTE, *cell.parameters()]),
    ]


def test_any_cell_gets_what_the_plain_loop_gives(
    compiled: Compiled, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    check_cell(DeltaMemory(E), [compiled])
    assert "not compiled" not in capfd.readouterr().err


def test_smaller_batches_take_the_same_step(compiled: Compiled) -> None:
    cell = DeltaMemory(E).double()
    results(compiled, cell, 3)
    steps = dict(compiled._steps)
    for batch_size in (1, 2, 3):
        expected = results(Reference(), cell, batch_size)
        torch.testing.assert_close(results(compiled, cell, batch_size), expected)
    assert compiled._steps == steps


def test_larger_batches_are_read_in_groups(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of few long rows after batches of many short ones, as tasks have, waste nothing."""
    monkeypatch.setattr("newllm.models.recurrence.compiled.MOST_ROWS", 3)
    cell = DeltaMemory(E).double()
    for batch_size in (7, 3, 1):
        expected = results(Reference(), cell, batch_size)
        torch.testing.assert_close(results(compiled, cell, batch_size), expected)
    step = compiled._steps[next(iter(compiled._steps))]
    assert step is not None
    assert step.batch_size == 3


class TwoContexts(Cell):
    """A state of several tensors that all have gradients."""

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim, H)
        self.change = nn.Linear(input_dim, H)

    def initial_state(self, batch_size: int) -> State:
        return tuple(self.change.weight.new_zeros(batch_size, H) for _ in range(2))

    def forward(
        self, inputs_BE: Tensor, state: State, masks: list[Tensor] | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        fast_BH = torch.tanh(state[0] + self.change(inputs_BE))
        return fast_BH, (fast_BH, (state[1] + fast_BH) / 2), {}


def test_nothing_of_a_chunk_outlives_it(compiled: Compiled) -> None:
    cell = TwoContexts(E)
    inputs_BTE = torch.randn(3, 5, E)
    num_tensors = []
    for _ in range(3):
        y_BTH, _ = compiled(cell, Chunk(inputs_BTE, cell.initial_state(3)))
        y_BTH.sum().backward()
        del y_BTH, _
        gc.collect()
        num_tensors.append(sum(type(found) is Tensor for found in gc.get_objects()))
    assert compiled._steps, "the plain loop keeps nothing in any case"
    assert num_tensors[2] == num_tensors[1]


def test_what_changes_the_equations_is_compiled_anew(compiled: Compiled) -> None:
    cell = DeltaMemory(E).double()
    cell.decay = 0.5
    torch.testing.assert_close(results(compiled, cell, 2), results(Reference(), cell, 2))


@pytest.mark.parametrize("name", ["decays", "read"])
def test_settings_of_any_kind_tell_cells_apart(compiled: Compiled, name: str) -> None:
    """A list, and a function: two layers share one recurrence, but not a step."""

    class Settled(DeltaMemory):
        decays, read = [0.9], torch.tanh

        def forward(
            self, inputs_BE: Tensor, state: State, masks: list[Tensor] | None = None
        ) -> tuple[Tensor, State, dict[str, Tensor]]:
            output_BH, after, gates = super().forward(inputs_BE, state, masks)
            return self.read(output_BH) * self.decays[0], after, gates

    for value in ([0.9], [0.1]) if name == "decays" else (torch.tanh, torch.relu):
        cell = Settled(E, dropout=0).double()
        setattr(cell, name, value)
        if name == "decays":
            cell.read = torch.tanh
        torch.testing.assert_close(results(compiled, cell, 2), results(Reference(), cell, 2))


def test_copies_share_their_steps_and_pickles_have_none(compiled: Compiled) -> None:
    assert copy.deepcopy(compiled) is compiled
    assert not pickle.loads(pickle.dumps(compiled))._steps


def test_a_cell_that_draws_numbers_takes_the_plain_loop(
    compiled: Compiled, capfd: pytest.CaptureFixture[str]
) -> None:
    cell = NoisyCell(E).double()
    for _ in range(2):
        torch.testing.assert_close(results(compiled, cell, 2), results(Reference(), cell, 2))
    told = "NoisyCell: not compiled, and therefore slower; its step draws random numbers"
    assert capfd.readouterr().err.count(told) == 1


def test_a_failing_compiler_leaves_the_plain_loop(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr("newllm.models.recurrence.step._kernels", fail)
    cell = DeltaMemory(E).double()
    torch.testing.assert_close(results(Compiled(), cell, 2), results(Reference(), cell, 2))
    assert (
        "DeltaMemory: not compiled, and therefore slower; no C++ compiler\n"
        in capfd.readouterr().err
    )


def test_a_compiler_that_is_wrong_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    from newllm.models.recurrence import step as module

    kernels = module._kernels

    def wrong(*arguments: object) -> object:
        forward, backward = kernels(*arguments)  # type: ignore[arg-type]
        return lambda given: [2 * forward(given)[0], *forward(given)[1:]], backward

    monkeypatch.setattr(module, "_kernels", wrong)
    cell = DeltaMemory(E).double()
    torch.testing.assert_close(results(Compiled(), cell, 2), results(Reference(), cell, 2))
