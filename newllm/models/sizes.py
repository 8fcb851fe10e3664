"""Widths that give a model a number of parameters and a size of state: like against like."""

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
    """What a model may cost, and which of its sizes are to follow from that.

    Attributes:
        parameters: how many; None leaves `widths` alone.
        widths: sizes of the model as multiples of one width, which then comes as near to that
            number as it can; None for a size that does not follow from it.
        state_bytes: of a sequence after its first token; None leaves `state_widths` alone.
        state_widths: the same of the width that decides on the state, and so no longer follows
            from the number of parameters.
        step: what widths are multiples of, as heads of attention ask for.
    """

    parameters: int | None = None
    widths: Mapping[str, int | None] = field(default_factory=dict)
    state_bytes: int | None = None
    state_widths: Mapping[str, int | None] = field(default_factory=dict)
    step: int = 1

    @property
    def names(self) -> list[str]:
        """Of all sizes that it decides on."""
        return [*following(self.widths), *following(self.state_widths)]

    def sizes(self, build: Callable[..., LanguageModel]) -> dict[str, int]:
        """The sizes at which a model comes nearest to the budget.

        Args:
            build: the model, given sizes by name.

        Raises:
            ValueError: there is no such width, or none that could follow from what is asked for.
        """
        found: dict[str, int] = {}
        if self.state_bytes is not None:
            # Its other sizes are any, while only the state is looked at.
            any_size = dict.fromkeys(following(self.widths), self.step)
            widths = following(self.state_widths)
            found |= self._sizes("state_bytes", widths, partial(build, **any_size))
        if self.parameters is not None:
            widths = following(self.widths)
            free = {name: multiple for name, multiple in widths.items() if name not in found}
            found |= self._sizes("parameters", free, partial(build, **found))
        return found

    def _sizes(
        self, what: str, widths: Mapping[str, int], build: Callable[..., LanguageModel]
    ) -> dict[str, int]:
        if not widths:
            key = "widths" if what == "parameters" else "state_widths"
            example = f"budget.{key}.hidden_dim=1"
            raise ValueError(f"budget.{what}: set the sizes to choose, as in {example}")

        def sizes(width: int) -> dict[str, int]:
            return {name: multiple * width for name, multiple in widths.items()}

        def cost(width: int) -> int:
            with torch.device("meta"):  # sizes only: no memory, no random draws
                return MEASURES[what](build(**sizes(width)))

        return sizes(nearest_width(cost, getattr(self, what), self.step, f"budget.{what}"))

    def misses(self, model: LanguageModel) -> Iterator[str]:
        """A line for each cost of the model that is not what was asked for."""
        for what, _ in PAIRS:
            target, cost = getattr(self, what), MEASURES[what](model)
            if target is not None and abs(cost - target) > NOTABLE_MISS * target:
                finer = f"; a smaller budget.step than {self.step} gets closer"
                yield (
                    f"budget.{what}={target}: the closest model has {cost:,} "
                    f"({cost / target - 1:+.1%}){finer if self.step > 1 else ''}"
                )


def num_parameters(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(weight.numel() for weight in model.parameters())


def _state_bytes(model: LanguageModel) -> int:
    return model.state_bytes(1)


MEASURES = {"parameters": num_parameters, "state_bytes": _state_bytes}


def nearest_width(cost: Callable[[int], int], target: int, step: int, name: str) -> int:
    """The multiple of `step` whose cost, which grows with the width, comes nearest to a target.

    Raises:
        ValueError: the narrowest costs more than twice the target, or no width costs as much.
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
