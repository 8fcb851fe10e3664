"""The optimizer of a model, with learning rates that suit any width."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from newllm.config.faults import raise_faults, too_small


@dataclass(frozen=True)
class OptimizerFactory:
    """Makes the optimizer of a model.

    Args:
        make: makes an optimizer of parameters, or of groups of them.
        base_fan_in: if given, a weight matrix with more inputs learns more slowly, and one with
            fewer faster, in inverse proportion, as the maximal update parametrization prescribes
            for Adam (Yang et al. 2022, arXiv 2203.03466, table 8): a learning rate found for a
            narrow model then suits a wide one. The product of learning rate and weight decay stays
            as it is. Embeddings, biases and normalizations learn as fast at any width.

    Raises:
        ValueError: `base_fan_in` is below 1.
    """

    make: Callable[..., Optimizer]
    base_fan_in: int | None = None

    def __post_init__(self) -> None:
        if self.base_fan_in is not None:
            raise_faults(too_small("recipe", 1, base_fan_in=self.base_fan_in))

    def __call__(self, model: nn.Module) -> Optimizer:
        """The optimizer of all parameters of a model."""
        if self.base_fan_in is None:
            return self.make(model.parameters())
        tables = {
            id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
        }
        groups: dict[float, list[nn.Parameter]] = defaultdict(list, {1.0: []})
        for weight in model.parameters():
            is_matrix = weight.dim() > 1 and id(weight) not in tables
            groups[self.base_fan_in / weight.shape[-1] if is_matrix else 1.0].append(weight)
        optimizer = self.make([{"params": weights} for weights in groups.values()])
        for factor, group in zip(groups, optimizer.param_groups, strict=True):
            group["lr"] *= factor
            if "weight_decay" in group:
                group["weight_decay"] /= factor
        return optimizer
