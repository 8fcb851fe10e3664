"""Gradient clipping by norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer


class GradientClip:
    """The largest allowed gradient norm by epoch.

    Args:
        pairs: [first epoch, from 0, and norm], ascending; no clipping without any.

    Raises:
        ValueError: the pairs do not start at epoch 0 or do not ascend, or a norm is not positive.
    """

    def __init__(self, pairs: Sequence[Sequence[float]]) -> None:
        epochs = [pair[0] for pair in pairs if isinstance(pair, Sequence) and len(pair) == 2]
        if len(epochs) < len(pairs) or (pairs and epochs[0] != 0) or epochs != sorted(set(epochs)):
            raise ValueError(
                f"recipe.gradient_clip={pairs}: must be [[0,NORM],[EPOCH,NORM],...], ascending"
            )
        if any(norm <= 0 for _, norm in pairs):
            raise ValueError(f"recipe.gradient_clip={pairs}: every norm must be above 0")
        self.pairs = pairs

    def __call__(self, epoch: int) -> float:
        """The largest norm in an epoch; infinite without a limit."""
        return next((norm for start, norm in reversed(self.pairs) if epoch >= start), math.inf)


def weights_of(optimizer: Optimizer) -> list[Tensor]:
    """The weights that an optimizer changes; of a sharded model, this process's part."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def clip_gradients(optimizer: Optimizer, limit: float) -> Tensor:
    """Clip the gradients to a norm of at most `limit` in the next step of `optimizer`.

    A fused optimizer divides the gradients by its `grad_scale` (meant for mixed precision), which
    saves a pass over them; for any other one they are scaled in place.

    Returns:
        The norm before clipping.
    """
    parameters = weights_of(optimizer)
    norm = get_total_norm([weight.grad for weight in parameters if weight.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if all(group.get("fused") for group in optimizer.param_groups):
        # The constant is that of torch.nn.utils.clip_grad_norm_. The optimizer reads both tensors
        # as float32, whatever the type of the weights.
        scale = ((norm + 1e-6) / limit).clamp(min=1.0).float()
        optimizer.grad_scale = scale  # type: ignore[attr-defined]
        optimizer.found_inf = torch.zeros_like(scale)  # type: ignore[attr-defined]
    else:
        clip_grads_with_norm_(parameters, limit, norm)
    return norm
