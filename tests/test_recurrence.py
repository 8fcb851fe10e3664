"""The reference recurrence: order, padding, resets, dropout masks, intervention, gradients.

Shapes: B batch, T time (tokens), E embedding, C context, H hidden.
"""

import pytest
import torch
from torch import Tensor, nn

from newllm.models.cell import ContextCell
from newllm.models.fnn import FNNS
from newllm.models.gating import LSTMGating
from newllm.models.recurrence.reference import MASK_BLOCK, DropoutMasks, Reference

B, T, E, C, H = 2, 5, 3, 4, 6


def make_cell(fnn: str = "plain", dropout: float = 0.0) -> ContextCell:
    torch.manual_seed(0)
    fnn_module = FNNS[fnn](H, 3)
    cell = ContextCell(E, C, H, fnn_module, LSTMGating(H, C), nn.LayerNorm(C), None, dropout)
    return cell.double()


def make_input(num_steps: int = T) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(B, num_steps, E).double(), torch.randn(B, C).double()


def test_takes_the_steps_in_order() -> None:
    cell = make_cell()
    embedded_BTE, context_BC = make_input()
    rollout = Reference()(cell, embedded_BTE, context_BC)
    for t in range(T):
        hidden_BH, context_BC, gates = cell(embedded_BTE[:, t], context_BC)
        assert torch.equal(rollout.hidden_BTH[:, t], hidden_BH)
        assert torch.equal(rollout.contexts_BTC[:, t], context_BC)
        assert torch.equal(rollout.gates["forget"][:, t], gates["forget"])
        assert torch.equal(rollout.gates["input"][:, t], gates["input"])


def test_reset_comes_before_the_token_and_pad_keeps_what_reset_left() -> None:
    cell = make_cell()
    embedded_BTE, context_BC = make_input(3)
    pad_BT = torch.tensor([[False, True, False], [False, True, False]])
    reset_BT = torch.tensor([[False, True, False], [False, False, True]])
    rollout = Reference()(cell, embedded_BTE, context_BC, None, pad_BT, reset_BT)
    contexts_BTC = rollout.contexts_BTC
    assert torch.equal(contexts_BTC[0, 1], torch.zeros(C).double())
    assert torch.equal(contexts_BTC[1, 1], contexts_BTC[1, 0])
    _, fresh_BC, _ = cell(embedded_BTE[:, 2], torch.zeros(B, C).double())
    torch.testing.assert_close(contexts_BTC[:, 2], fresh_BC)


def test_intervention_is_recorded_and_read_by_the_next_token() -> None:
    cell = make_cell()
    embedded_BTE, context_BC = make_input()
    replacement_BC = torch.full((B, C), 0.5).double()
    rollout = Reference()(
        cell,
        embedded_BTE,
        context_BC,
        intervene=lambda t, context_BC: replacement_BC if t == 2 else context_BC,
    )
    untouched = Reference()(cell, embedded_BTE, context_BC)
    assert torch.equal(rollout.hidden_BTH[:, :3], untouched.hidden_BTH[:, :3])
    assert torch.equal(rollout.contexts_BTC[:, 2], replacement_BC)
    assert torch.equal(rollout.hidden_BTH[:, 3], cell(embedded_BTE[:, 3], replacement_BC)[0])


@pytest.mark.parametrize("fnn", FNNS)
def test_masks_are_replayed_by_the_seed(fnn: str) -> None:
    cell = make_cell(fnn, dropout=0.4)
    num_steps = MASK_BLOCK + 3
    embedded_BTE, _ = make_input(num_steps)
    masks = DropoutMasks.draw(cell, embedded_BTE)
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
    embedded_BTE, context_BC = make_input()

    def hidden(seed: int) -> Tensor:
        torch.manual_seed(seed)
        masks = DropoutMasks.draw(cell, embedded_BTE)
        return Reference()(cell, embedded_BTE, context_BC, masks).hidden_BTH

    assert torch.equal(hidden(7), hidden(7))
    assert not torch.equal(hidden(7), hidden(8))


def test_each_step_uses_its_own_masks() -> None:
    cell = make_cell(dropout=0.4)
    embedded_BTE, context_BC = make_input()
    torch.manual_seed(3)
    masks = DropoutMasks.draw(cell, embedded_BTE)
    assert masks is not None
    rollout = Reference()(cell, embedded_BTE, context_BC, masks)
    for t, step_masks in enumerate(masks.steps(T)):
        hidden_BH, context_BC, _ = cell(embedded_BTE[:, t], context_BC, step_masks)
        assert torch.equal(rollout.hidden_BTH[:, t], hidden_BH)


def test_nothing_is_drawn_in_evaluation_or_at_probability_zero() -> None:
    embedded_BTE, _ = make_input()
    assert DropoutMasks.draw(make_cell(dropout=0.4).eval(), embedded_BTE) is None
    assert DropoutMasks.draw(make_cell(dropout=0.0), embedded_BTE) is None
    assert DropoutMasks.draw(make_cell(dropout=0.4), embedded_BTE) is not None


@pytest.mark.parametrize("fnn", FNNS)
def test_gradients_through_time(fnn: str) -> None:
    cell = make_cell(fnn, dropout=0.4)
    embedded_BTE, context_BC = make_input(4)
    pad_BT = torch.tensor([[False, True, False, False], [False, False, False, True]])
    reset_BT = torch.tensor([[False, False, True, False], [True, False, False, False]])
    names = [name for name, _ in cell.named_parameters()]

    class Carried(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, embedded_BTE: Tensor, context_BC: Tensor) -> tuple[Tensor, Tensor]:
            torch.manual_seed(5)
            masks = DropoutMasks.draw(self.cell, embedded_BTE)
            rollout = Reference()(self.cell, embedded_BTE, context_BC, masks, pad_BT, reset_BT)
            return rollout.hidden_BTH, rollout.contexts_BTC

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        weights = {f"cell.{name}": tensor for name, tensor in zip(names, tensors[2:], strict=True)}
        hidden_BTH, contexts_BTC = torch.func.functional_call(Carried(), weights, tensors[:2])
        return hidden_BTH, contexts_BTC

    inputs = (embedded_BTE.requires_grad_(), context_BC.requires_grad_(), *cell.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
