"""The first steps of a recurrence, compared with those of the plain loop.

What compilers and drivers make of a step cannot be tested in advance on every machine.

Shapes: B batch, T time (tokens), E input, H output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from newllm.models.cell import Cell
from newllm.models.recurrence.reference import Chunk, Recurrence, roll
from newllm.models.recurrence.step import TOLERANCE

CHECKED_STEPS = 4
ROUGH_TOLERANCE = 3e-2  # of products in less than float32


def autocast_dtype(chunk: Chunk) -> torch.dtype | None:
    """The type that autocast computes products in; None outside of it."""
    device = chunk.inputs_BTE.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def check_against_loop(carry: Recurrence, cell: Cell, chunk: Chunk) -> None:
    """Compare the first steps and all their gradients with those of the plain loop.

    Raises:
        ValueError: they differ.
    """
    with torch.inference_mode(False), torch.enable_grad():
        _compare(carry, cell, _beginning(chunk))


def _beginning(chunk: Chunk) -> Chunk:
    """The first steps, copied: what comes from inference mode can have no gradient."""
    inputs_BTE, pad_BT, reset_BT = (
        None if tensor is None else tensor[:, :CHECKED_STEPS].detach().clone()
        for tensor in (chunk.inputs_BTE, chunk.pad_BT, chunk.reset_BT)
    )
    assert inputs_BTE is not None
    return Chunk(inputs_BTE, chunk.state, chunk.masks, pad_BT, reset_BT)


def _compare(carry: Recurrence, cell: Cell, short: Chunk) -> None:
    found = _results(carry, cell, short)
    expected = _results(roll, cell, short)
    is_exact = autocast_dtype(short) is None and short.inputs_BTE.dtype.itemsize >= 4
    tolerance = TOLERANCE if is_exact else ROUGH_TOLERANCE
    for one, other in zip(found, expected, strict=True):
        largest = float(other.abs().amax()) if other.numel() else 0.0
        if not torch.allclose(one.to(other), other, rtol=0, atol=tolerance * largest):
            raise ValueError("its steps give other values than the cell")


def _results(carry: Recurrence, cell: Cell, chunk: Chunk) -> list[Tensor]:
    """Outputs, state, and the gradients of a loss with a random weight for each number."""
    state = tuple(part.detach().clone() for part in chunk.state)
    given = [chunk.inputs_BTE.clone(), *(part for part in state if part.is_floating_point())]
    for part in given:
        part.requires_grad_()
    outputs_BTH, after = carry(cell, chunk._replace(inputs_BTE=given[0], state=state))
    if chunk.pad_BT is not None:
        outputs_BTH = outputs_BTH.masked_fill(chunk.pad_BT[:, :, None], 0)
    results = [outputs_BTH, *(part for part in after if part.is_floating_point())]
    learned = [result for result in results if result.requires_grad]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(result.shape, generator=generator).to(result) for result in learned]
    given += [weight for weight in cell.parameters() if weight.requires_grad]
    grads = torch.autograd.grad(learned, given, weights, allow_unused=True, materialize_grads=True)
    return [result.detach() for result in (*results, *grads)]
