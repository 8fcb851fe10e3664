"""Contexts of a few bits: their levels, their gradients, and what they can hold."""

import math
from functools import partial

import pytest
import torch

from newllm.models.cell import ContextCell
from newllm.models.context_attention import ContextAttention
from newllm.models.contract import check_layer
from newllm.models.delta import DeltaCell
from newllm.models.gating import LSTMGating
from newllm.models.language_model import LanguageModel
from newllm.models.quantization import Quantized
from newllm.models.recurrence.native.weights import has_native_code
from newllm.models.recurrence.reference import Reference
from newllm.models.recurrent import Recurrent
from newllm.studies.examination.measured import broken


def cell_of(levels: int, context_dim: int = 3) -> ContextCell:
    torch.manual_seed(0)
    quantized = partial(Quantized, levels=levels)
    return ContextCell(5, context_dim, 6, 2, gating=LSTMGating, normalization=quantized)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [(1, [0]), (2, [-1, 1]), (3, [-1, 0, 1]), (4, [-1, -1 / 3, 1 / 3, 1])],
)
def test_the_levels_are_evenly_spaced_and_exact(levels: int, expected: list[float]) -> None:
    numbers = torch.linspace(-8, 8, 1001)[:, None]
    found = Quantized(1, levels)(numbers).unique()
    assert found.tolist() == pytest.approx(expected)
    nearest = torch.tensor(expected)[(numbers.tanh() - torch.tensor(expected)).abs().argmin(1)]
    is_between = torch.isin(numbers, numbers[::500])  # halfway between levels, either will do
    assert torch.equal(Quantized(1, levels)(numbers)[~is_between], nearest[:, None][~is_between])


@pytest.mark.parametrize("levels", [2, 3, 8])
def test_the_gradient_is_that_of_the_bound(levels: int) -> None:
    numbers = torch.linspace(-2, 2, 9).requires_grad_()
    (found,) = torch.autograd.grad(Quantized(9, levels)(numbers).sum(), numbers)
    assert found == pytest.approx(1 - numbers.detach().tanh() ** 2)


@pytest.mark.parametrize(("levels", "bits"), [(1, 0), (2, 3), (3, 3 * math.log2(3)), (16, 12)])
def test_bits_are_counted_in_the_state(levels: int, bits: float) -> None:
    cell = cell_of(levels)
    layer = Recurrent(5, lambda input_dim: cell)
    assert layer.state_bits(9) == pytest.approx(bits)
    contexts = layer.trace(torch.randn(200, 7, 5)).contexts_BTC.flatten(0, 1)
    assert len(contexts.unique(dim=0)) <= 2**bits + 0.5
    unlimited = Recurrent(5, lambda input_dim: ContextCell(5, 3, 6, 2))
    assert unlimited.state_bits(9) == 3 * 32


def test_stored_contexts_have_the_bits_of_a_context() -> None:
    layer = ContextAttention(5, lambda input_dim: cell_of(4), 3, num_heads=2, feedforward_dim=4)
    assert [layer.state_bits(number) for number in (0, 2, 3, 9)] == [6, 6, 12, 24]
    model = LanguageModel(9, 5, [lambda input_dim, **settings: layer])
    assert broken(model) == []  # whose gradients are not those of finite differences


def test_a_matrix_holds_the_bits_of_its_numbers() -> None:
    torch.manual_seed(0)
    cell = DeltaCell(5, 4, 6, 2, num_heads=2, normalization=partial(Quantized, levels=2))
    layer = Recurrent(5, lambda input_dim: cell, Reference())
    assert layer.state_bits(9) == 8  # two heads of 2 x 2
    assert cell.description == "delta C4 heads2 H6 L2 E5 quantized"
    _, (memory_BNKK,) = layer(torch.randn(200, 7, 5))
    assert set(memory_BNKK.unique().tolist()) == {-1, 1}
    check_layer(layer)


def test_it_keeps_the_contract_and_has_no_native_code() -> None:
    check_layer(Recurrent(5, lambda input_dim: cell_of(2), Reference()))
    assert not has_native_code(cell_of(2))


def test_no_levels_are_a_fault() -> None:
    with pytest.raises(ValueError, match=r"normalization\.levels=0: must be at least 1"):
        cell_of(0)
