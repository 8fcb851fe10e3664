"""The fused recurrence against the reference: values, gradients, memory, and cells it never saw.

Shapes: B batch, T time (tokens), E embedding, C context, H hidden, V vocabulary.
"""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.models.cell import ContextCell
from newllm.models.context import ContextModel
from newllm.models.deferred import DeferredGradients
from newllm.models.fnn import FNNS
from newllm.models.fused import FEW_STEPS, Fused
from newllm.models.gating import Additive, Gating, LSTMGating
from newllm.models.recurrence import MASK_BLOCK, Recurrence, Reference
from newllm.models.segment import has_kernels

B, E, C, H = 3, 5, 4, 6
MANY_STEPS = MASK_BLOCK + 6  # more than one segment


class CoupledGating(Gating):
    """A gating that only this test knows, so that it has no backward pass written by hand."""

    name = "coupled"

    def __init__(self, hidden_dim: int, context_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_dim, context_dim)
        self.delta = nn.Linear(hidden_dim, context_dim, bias=False)

    def forward(self, hidden_BH: Tensor, context_BC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        gate_BC = torch.sigmoid(self.gate(hidden_BH))
        return context_BC.lerp(self.delta(hidden_BH), gate_BC), {"gate": gate_BC}


GATINGS = (Additive, LSTMGating, CoupledGating)
NORMALIZATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "layernorm": lambda: nn.LayerNorm(C),
    "layernorm_without_weights": lambda: nn.LayerNorm(C, elementwise_affine=False),
    "layernorm_without_bias": lambda: nn.LayerNorm(C, bias=False),
}


def make_cell(
    gating: type[Gating] = LSTMGating,
    normalization: str = "layernorm",
    fnn: str = "plain",
    clip: float | None = None,
    dropout: float = 0.3,
) -> ContextCell:
    torch.manual_seed(0)
    cell = ContextCell(
        E, C, H, FNNS[fnn](H, 3), gating(H, C), NORMALIZATIONS[normalization](), clip, dropout
    ).double()
    for parameter in cell.parameters():
        nn.init.normal_(parameter, std=0.5)
    return cell


def make_input(num_steps: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    embedded_BTE = torch.randn(B, num_steps, E, dtype=torch.double, requires_grad=True)
    return embedded_BTE, torch.randn(B, C, dtype=torch.double, requires_grad=True)


def make_flags(num_steps: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.rand(B, num_steps) < 0.3, torch.rand(B, num_steps) < 0.3


def results(
    recurrence: Recurrence,
    cell: ContextCell,
    num_steps: int,
    pad_BT: Tensor | None = None,
    reset_BT: Tensor | None = None,
) -> list[Tensor]:
    """Hidden vectors, contexts, and the gradients of a loss that weighs every element otherwise."""
    embedded_BTE, context_BC = make_input(num_steps)
    torch.manual_seed(3)
    rollout = recurrence(cell, embedded_BTE, context_BC, pad_BT, reset_BT)
    torch.manual_seed(4)
    loss = sum((x * torch.randn_like(x)).sum() for x in (rollout.hidden_BTH, rollout.contexts_BTC))
    assert isinstance(loss, Tensor)
    loss.backward()
    grads = [p.grad for p in (embedded_BTE, context_BC, *cell.parameters())]
    cell.zero_grad()
    assert all(grad is not None for grad in grads)
    return [rollout.hidden_BTH, rollout.contexts_BTC, *(g for g in grads if g is not None)]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("flags", ["", "pad", "reset", "pad reset"])
@pytest.mark.parametrize("fnn", FNNS)
@pytest.mark.parametrize("gating", GATINGS)
def test_equals_the_reference(
    gating: type[Gating], fnn: str, flags: str, recompute: bool
) -> None:
    for normalization, clip, dropout, num_steps in product(
        NORMALIZATIONS, (None, 0.5), (0.0, 0.3), (1, FEW_STEPS, MANY_STEPS)
    ):
        cell = make_cell(gating, normalization, fnn, clip, dropout)
        pad_BT, reset_BT = make_flags(num_steps)
        chosen = (pad_BT if "pad" in flags else None, reset_BT if "reset" in flags else None)
        expected = results(Reference(), cell, num_steps, *chosen)
        torch.testing.assert_close(
            results(Fused(recompute), cell, num_steps, *chosen), expected, rtol=1e-9, atol=1e-11
        )
