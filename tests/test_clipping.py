"""Gradient clipping: limits by epoch, and the fused way against torch's own."""

import copy
import math

import pytest
import torch
from torch import nn

from newllm.training.clipping import GradientClip, clip_gradients


def test_gradient_clip_follows_the_epochs() -> None:
    clip = GradientClip([[0, 0.5], [10, 1.0], [30, 2.0]])
    assert [clip(epoch) for epoch in (0, 9, 10, 29, 30, 149)] == [0.5, 0.5, 1.0, 1.0, 2.0, 2.0]
    assert GradientClip([])(5) == math.inf


@pytest.mark.parametrize("pairs", [[[1, 1.0]], [[0, 1.0], [0, 2.0]], [[0]], [[0, 0.0]]])
def test_gradient_clip_refuses_nonsense(pairs: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"recipe\.gradient_clip="):
        GradientClip(pairs)


@pytest.mark.parametrize("limit", [0.01, 1e6, math.inf])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_is_that_of_torch_s_clipping(fused: bool, limit: float) -> None:
    torch.manual_seed(0)
    expected = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    model = copy.deepcopy(expected)
    # SGD, unlike Adam, shows the scale of a gradient in the step.
    reference = torch.optim.SGD(expected.parameters(), lr=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, fused=fused)
    for _ in range(3):
        inputs = torch.randn(4, 5)
        for network in (expected, model):
            network.zero_grad()
            network(inputs).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(expected.parameters(), limit)
        torch.testing.assert_close(clip_gradients(optimizer, limit), norm)
        reference.step()
        optimizer.step()
        for own, theirs in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(own, theirs)
