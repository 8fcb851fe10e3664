"""The equations of one step of the context cell, against numpy.

Shapes: B batch, E embedding, C context, H hidden.
"""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from newllm.models.cell import ContextCell
from newllm.models.gating import Additive, Gating, LSTMGating

B, E, C, H, LAYERS = 3, 4, 5, 6, 3
Array = np.ndarray

VARIANTS = list(
    product([Additive, LSTMGating], [nn.Identity, nn.LayerNorm], [None, 0.3], ["plain", "residual"])
)


def make_cell(
    gating: type[Gating], normalization: type[nn.Module], clip: float | None, fnn: str
) -> ContextCell:
    torch.manual_seed(0)
    cell = ContextCell(
        E, C, H, LAYERS, fnn=fnn, context_clip=clip, gating=gating, normalization=normalization
    )
    for parameter in cell.parameters():  # away from LayerNorm's 1 and 0, which would hide faults
        nn.init.normal_(parameter, std=0.7)
    return cell.double()


def make_input(cell: ContextCell) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    masks_NBH = torch.randint(0, 2, (cell.fnn.num_masks, B, H)).double() * 1.25
    return torch.randn(B, E).double(), torch.randn(B, C).double(), masks_NBH


def numpy_step(
    weights: dict[str, Array],
    embedded: Array,
    context: Array,
    masks: Array,
    gated: bool,
    normalized: bool,
    clip: float | None,
    fnn: str,
) -> tuple[Array, Array]:
    def linear(name: str, vectors: Array) -> Array:
        return vectors @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def layer_norm(name: str, vectors: Array) -> Array:
        centred = vectors - vectors.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def sigmoid(vectors: Array) -> Array:
        return 1 / (1 + np.exp(-vectors))

    hidden = linear("input", np.concatenate([embedded, context], axis=1))
    if fnn == "plain":
        hidden = np.maximum(hidden, 0) * masks[0]
        for layer in range(LAYERS - 1):
            hidden = np.maximum(linear(f"fnn.layers.{layer}", hidden), 0) * masks[layer + 1]
    else:
        for layer in range(LAYERS - 1):
            active = np.maximum(layer_norm(f"fnn.norms.{layer}", hidden), 0) * masks[layer]
            hidden = hidden + linear(f"fnn.layers.{layer}", active)
        hidden = layer_norm("fnn.final_norm", hidden)

    delta = linear("gating.delta", hidden)
    if gated:
        forget = sigmoid(linear("gating.forget_gate", hidden))
        context = forget * context + sigmoid(linear("gating.input_gate", hidden)) * delta
    else:
        context = context + delta
    if normalized:
        context = layer_norm("normalization", context)
    if clip is not None:
        context = np.clip(context, -clip, clip)
    return hidden, context


@pytest.mark.parametrize(("gating", "normalization", "clip", "fnn"), VARIANTS)
def test_step_equals_numpy(
    gating: type[Gating], normalization: type[nn.Module], clip: float | None, fnn: str
) -> None:
    cell = make_cell(gating, normalization, clip, fnn)
    embedded_BE, context_BC, masks_NBH = make_input(cell)
    weights = {name: tensor.detach().numpy() for name, tensor in cell.named_parameters()}
    expected_hidden, expected_context = numpy_step(
        weights,
        embedded_BE.numpy(),
        context_BC.numpy(),
        masks_NBH.numpy(),
        gating is LSTMGating,
        normalization is nn.LayerNorm,
        clip,
        fnn,
    )
    hidden_BH, (new_BC,), gates = cell(embedded_BE, (context_BC,), masks_NBH)
    np.testing.assert_allclose(hidden_BH.detach(), expected_hidden, atol=1e-12)
    np.testing.assert_allclose(new_BC.detach(), expected_context, atol=1e-12)
    assert set(gates) == ({"forget", "input"} if gating is LSTMGating else set())
    if clip is not None:
        assert (new_BC.abs() == clip).any(), "the clamp never acted, so nothing was tested"


@pytest.mark.parametrize("fnn", ["plain", "residual"])
def test_no_masks_equal_masks_of_one(fnn: str) -> None:
    cell = make_cell(LSTMGating, nn.LayerNorm, None, fnn)
    embedded_BE, context_BC, masks_NBH = make_input(cell)
    without, with_ones, dropped = (
        cell(embedded_BE, (context_BC,), masks)[0]
        for masks in (None, torch.ones_like(masks_NBH), masks_NBH)
    )
    assert torch.equal(without, with_ones)
    assert not torch.allclose(without, dropped)
