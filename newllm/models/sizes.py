"""Widths that give a model a certain number of parameters and a certain size of its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from newllm.config.budget import PAIRS, following
from newllm.models.language_model import LanguageModel

WIDEST = 1 << 16
NOTABLE_MISS = 0.02  # of a budget


@dataclass(frozen=True)
class Budget:
    """The cost of a model, and the sizes that follow from it.

    Attributes:
        parameters: number of parameters; None does not use `widths`.
        widths: sizes of the model that follow from `parameters`, as multiples of one width, rounded
            to a multiple of `step`; None for a size that does not follow.
        state_bytes: bytes of a sequence's state after its first token; None does not use
            `state_widths`.
        state_widths: sizes that follow from `state_bytes` instead of `parameters`, likewise.
        step: all widths are multiples of this, as attention heads require.
    """

    parameters: int | None = None
    widths: Mapping[str, float | None] = field(default_factory=dict)
    state_bytes: int | None = None
    state_widths: Mapping[str, float | None] = field(default_factory=dict)
    step: int = 1

    @property
    def names(self) -> list[str]:
        """Names of all sizes that follow."""
        return [*following(self.widths), *following(self.state_widths)]

    def sizes(self, build: Callable[..., LanguageModel]) -> dict[str, int]:
        """The sizes by name with which `build` makes the model nearest to the budget.

        Raises:
            ValueError: no width is near, or no size follows.
        """
        found: dict[str, int] = {}
        if self.state_bytes is not None:
            # The other sizes do not matter to the state.
            any_size = dict.fromkeys(following(self.widths), self.step)
            found |= self._sizes("state_bytes", self.state_widths, partial(build, **any_size))
        if self.parameters is not None:
            free = {name: each for name, each in self.widths.items() if name not in found}
            found |= self._sizes("parameters", free, partial(build, **found))
        return found

    def _sizes(
        self, what: str, widths: Mapping[str, float | None], build: Callable[..., LanguageModel]
    ) -> dict[str, int]:
        def sizes(width: int) -> dict[str, int]:
            return {
                name: max(1, round(multiple * width / self.step)) * self.step
                for name, multiple in following(widths).items()
            }

        def cost(width: int) -> int:
            with torch.device("meta"):  # sizes only: no memory, no random draws
                return MEASURES[what](build(**sizes(width)))

        if not following(widths):
            example = f"budget.{dict(PAIRS)[what]}.hidden_dim=1"
            raise ValueError(f"budget.{what}: set the sizes to choose, as in {example}")
        return sizes(nearest_width(cost, getattr(self, what), self.step, f"budget.{what}"))

    def misses(self, model: LanguageModel) -> Iterator[str]:
        """A line for each cost of the model that misses the budget notably."""
        for what, _ in PAIRS:
            target, cost = getattr(self, what), MEASURES[what](model)
            if target is not None and abs(cost - target) > NOTABLE_MISS * target:
                hint = (
                    f"; a step below budget.step={self.step} comes nearer" if self.step > 1 else ""
                )
                miss = f"{cost / target - 1:+.1%}"
                yield f"budget.{what}={target}: the closest model has {cost:,} ({miss}){hint}"


def num_parameters(model: nn.Module) -> int:
    """Number of parameters of a model."""
    return sum(weight.numel() for weight in model.parameters())


MEASURES: dict[str, Callable[[LanguageModel], int]] = {
    "parameters": num_parameters,
    "state_bytes": lambda model: model.state_bytes(1),
}


def nearest_width(cost: Callable[[int], int], target: int, step: int, name: str) -> int:
    """The multiple of `step` whose increasing cost is nearest to a target.

    Raises:
        ValueError: the smallest costs more than twice the target, or none reaches it.
    """
    low, high = step, step
    while cost(high) < target:
        low, high = high, 2 * high
        if high > WIDEST:
            raise ValueError(f"{name}={target}: no width below {WIDEST} reaches it")
    while high - low > step:
        middle = (low + high) // (2 * step) * step
        low, high = (middle, high) if cost(middle) < target else (low, middle)
    nearest = min((low, high), key=lambda width: abs(cost(width) - target))
    if cost(nearest) > 2 * target:
        raise ValueError(f"{name}={target}: even the narrowest model has {cost(nearest):,}")
    return nearest
