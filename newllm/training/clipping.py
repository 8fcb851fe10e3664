"""Gradient clipping by norm: how much is allowed in which epoch, and doing it cheaply."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer


class GradientClip:
    """The largest allowed gradient norm by epoch, as pairs [from this epoch on, norm].

    Epochs count from 0 here. No pairs: no clipping.

    Raises:
        ValueError: if the pairs do not start at epoch 0, do not ascend, or a norm is not positive.
    """

    def __init__(self, pairs: Sequence[Sequence[float]]) -> None:
        epochs = [pair[0] for pair in pairs if len(pair) == 2]
        if len(epochs) < len(pairs) or (pairs and epochs[0] != 0) or epochs != sorted(set(epochs)):
            raise ValueError(
                f"recipe.gradient_clip={pairs}: must be [[0,NORM],[EPOCH,NORM],...], ascending"
            )
        if any(norm <= 0 for _, norm in pairs):
            raise ValueError(f"recipe.gradient_clip={pairs}: every norm must be above 0")
        self.pairs = pairs

    def __call__(self, epoch: int) -> float:
        """The largest norm in this epoch; infinite where there is no limit."""
        return next((norm for start, norm in reversed(self.pairs) if epoch >= start), math.inf)


def clip_gradients(optimizer: Optimizer, limit: float) -> Tensor:
    """Scale the gradients down to a norm of at most `limit`, when `optimizer` takes its step.

    A fused optimizer divides the gradients by its `grad_scale` while it reads them anyway (meant
    for mixed precision), which saves a pass over them; any other one gets them scaled in place.

    Returns:
        The norm before clipping.
    """
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = get_total_norm([weight.grad for weight in parameters if weight.grad is not None])
    if all(group.get("fused") for group in optimizer.param_groups):
        # The small constant is that of torch.nn.utils.clip_grad_norm_. Whatever the type of the
        # weights, the optimizer reads both as float32.
        scale = ((norm + 1e-6) / limit).clamp(min=1.0).float()
        optimizer.grad_scale = scale  # type: ignore[attr-defined]
        optimizer.found_inf = torch.zeros_like(scale)  # type: ignore[attr-defined]
    else:
        clip_grads_with_norm_(parameters, limit, norm)
    return norm
