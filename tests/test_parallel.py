"""All tokens at once: what an iteration reaches. That it ends at the plain loop's values and
gradients is a part of the contract of a cell, which `test_contract` asks.

Shapes: B batch, T time (tokens), E input, C state.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from newllm.data.tokenizer import PAD
from newllm.models.cell import Cell, ContextCell
from newllm.models.gating import LSTMGating
from newllm.models.hierarchy import HierarchyCell
from newllm.models.language_model import LanguageModel
from newllm.models.layer import State, zeros
from newllm.models.recurrence.all_steps import AllSteps
from newllm.models.recurrence.parallel import Parallel
from newllm.models.recurrence.reference import Chunk, Reference, roll
from newllm.models.recurrent import Recurrent
from newllm.statistics.iterations import iteration_errors

B, T, C = 2, 40, 3


class Decay(Cell):
    """state = rate * state + mixing * tanh(the sum of the state) + input, of any width."""

    def __init__(self, rate: float, mixing: float = 0.0) -> None:
        super().__init__(C, C)
        self.rate = nn.Parameter(torch.full((C,), rate))
        self.mixing = mixing

    def forward(self, inputs_BE, state, masks=None):  # type: ignore[no-untyped-def]
        (state_BC,) = state
        mixed_B1 = self.mixing * torch.tanh(state_BC.sum(1, keepdim=True))
        return state_BC, (self.rate * state_BC + mixed_B1 + inputs_BE,), {}

    def initial_state(self, batch_size: int) -> State:
        return (zeros(self, batch_size, C),)


def read(cell: Cell, num_steps: int = T) -> Chunk:
    generator = torch.Generator().manual_seed(1)
    inputs_BTE = torch.randn(B, num_steps, cell.input_dim, generator=generator).double()
    return Chunk(inputs_BTE, cell.initial_state(B))


@pytest.fixture
def num_taken(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often all steps have been taken since the last call."""
    taken: list[None] = []
    take = AllSteps.take

    def counted(steps: AllSteps, before: State) -> tuple[Tensor, State]:
        taken.append(None)
        return take(steps, before)

    def number() -> int:
        found = len(taken)
        taken.clear()
        return found

    monkeypatch.setattr(AllSteps, "take", counted)
    return number


def test_one_state_more_is_exact_after_each_iteration() -> None:
    cell = Decay(2.0).double()  # an error that grows does not matter
    chunk = read(cell, 12)
    expected, _ = roll(cell, chunk)
    for num_iterations in (1, 4, 10, 12, 99):
        found, _ = Parallel(num_iterations)(cell, chunk)
        # The output is the state before the token.
        is_exact_T = torch.isclose(found, expected, atol=1e-9).all(0).all(-1)
        assert is_exact_T.tolist() == [t <= num_iterations for t in range(12)]


def test_the_error_shrinks_by_one_jacobian_an_iteration() -> None:
    cell = Decay(0.8).double()
    chunk = Chunk(torch.ones(B, 200, C).double(), cell.initial_state(B))  # at rest in the end
    with torch.no_grad():
        expected, _ = roll(cell, chunk)
        one, six, eleven = (
            float((Parallel(number)(cell, chunk)[0] - expected)[:, -1].norm())
            for number in (1, 6, 11)
        )
    assert [six / one, eleven / six] == pytest.approx([0.8**5] * 2, rel=1e-6)


def test_it_ends_when_nothing_changes(num_taken: Callable[[], int]) -> None:
    cell = Decay(0.1).double()
    Parallel()(cell, read(cell, 500))
    assert 16 <= num_taken() <= 22  # 0.1^16 is the rounding error


def test_a_diagonal_jacobian_needs_one_newton_step(num_taken: Callable[[], int]) -> None:
    cell = Decay(0.97).double()
    chunk = read(cell, 200)
    found, _ = Parallel(newton=True)(cell, chunk)
    torch.testing.assert_close(found, roll(cell, chunk)[0])
    assert num_taken() <= 4  # one more to see that it has settled, and one for the gradients


def test_newton_steps_carry_a_slow_decay_on(num_taken: Callable[[], int]) -> None:
    cell = Decay(0.97, 0.01).double()
    chunk = read(cell, 400)
    Parallel()(cell, chunk)
    without = num_taken()
    Parallel(newton=True)(cell, chunk)
    assert num_taken() < without / 5


def test_newton_steps_are_the_same_in_inference_mode() -> None:
    cell = Decay(0.9, 0.5).double()
    with torch.no_grad():
        expected, (expected_state,) = Parallel(3, newton=True)(cell, read(cell))
    with torch.inference_mode():
        found, (state,) = Parallel(3, newton=True)(cell, read(cell))
    torch.testing.assert_close((found, state), (expected, expected_state), rtol=0, atol=0)


def test_a_clock_is_carried_by_the_plain_loop(num_taken: Callable[[], int]) -> None:
    cell = HierarchyCell(C, context_dim=4, hidden_dim=4, num_layers=1, periods=[1, 3]).double()
    found, _ = Parallel(4)(cell, read(cell))
    torch.testing.assert_close(found, roll(cell, read(cell))[0], rtol=0, atol=0)
    assert num_taken() == 0


def test_what_diverges_ends_the_iteration(num_taken: Callable[[], int]) -> None:
    cell = Decay(0.5).double()
    chunk = read(cell, 500)
    chunk.inputs_BTE[:, 0] = torch.nan
    Parallel()(cell, chunk)
    assert num_taken() < 10


@pytest.mark.parametrize("newton", [False, True])
def test_gradients_of_few_iterations_reach_as_far_back(newton: bool) -> None:
    cell = Decay(1.0).double()
    inputs_BTE = read(cell, 12).inputs_BTE.requires_grad_()
    chunk = Chunk(inputs_BTE, cell.initial_state(B))
    outputs_BTC, _ = Parallel(4, newton)(cell, chunk)
    outputs_BTC[:, -1].sum().backward()
    reached_T = inputs_BTE.grad[0].abs().sum(-1) > 0
    assert not reached_T[-1]  # an input changes no output of its own
    assert reached_T[-5:-1].all()
    assert reached_T[:-5].any() == newton


def test_recomputing_starts_from_the_states_of_the_first_time(
    num_taken: Callable[[], int],
) -> None:
    torch.manual_seed(0)
    cell = partial(ContextCell, context_dim=4, hidden_dim=6, num_layers=2, gating=LSTMGating)

    def loss(recurrence: Callable[..., object], recompute: bool) -> list[Tensor]:
        torch.manual_seed(0)
        layer = partial(Recurrent, cell=cell, recurrence=recurrence)
        model = LanguageModel(9, 5, [layer], recompute=recompute).double()
        tokens_BT = torch.randint(4, 9, (2, 150), generator=torch.Generator().manual_seed(0))
        loss_BT, *_ = model.score(tokens_BT, tokens_BT)
        loss_BT.sum().backward()
        return [loss_BT, *(parameter.grad for parameter in model.parameters())]

    expected = loss(Reference(), recompute=False)
    torch.testing.assert_close(loss(Parallel(4), recompute=True)[0].shape, expected[0].shape)
    assert num_taken() == 3 * (4 + 1 + 1)  # three blocks; the second time, no iteration
    torch.testing.assert_close(loss(Parallel(), recompute=True), expected)


def test_torchs_generator_is_left_alone() -> None:
    cell = Decay(0.5).double()
    before = torch.get_rng_state()
    Parallel(newton=True)(cell, read(cell))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_iterations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"recurrence.num_iterations=0: must be at least 1"):
        Parallel(0)


def test_the_error_after_each_iteration() -> None:
    cell = Decay(0.5)
    model = LanguageModel(9, C, [partial(Recurrent, cell=lambda input_dim: cell)])
    tokens_BT = torch.tensor([[5, 6, 7, 8, 5], [6, 5, PAD, PAD, PAD]])
    errors = iteration_errors(model, tokens_BT)
    exact_BTC = model.trace(tokens_BT).contexts_BTC.detach()
    first_BTC = model.embedding(tokens_BT).detach()  # what one step makes of no state
    wrong_BTC = exact_BTC - first_BTC
    squares = wrong_BTC[0, 1:].square().sum() + wrong_BTC[1, 1].square().sum()
    guessed = exact_BTC[0, 1:].square().sum() + exact_BTC[1, 1].square().sum()
    assert len(errors) == 4
    assert errors[0] == pytest.approx(float((squares / guessed).sqrt()), rel=1e-5)
    assert errors[-1] < errors[0]


def test_a_state_that_never_changes_has_no_error() -> None:
    cell = Decay(0.5)
    model = LanguageModel(9, C, [partial(Recurrent, cell=lambda input_dim: cell)])
    with torch.no_grad():
        model.embedding.weight.zero_()
    assert iteration_errors(model, torch.tensor([[5, 6, 7]])) == [0.0]
    assert iteration_errors(model, torch.tensor([[5]])) == []
