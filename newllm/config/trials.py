"""The trials of a search, drawn independently."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any


def draw_trials(number: int, seed: int, space: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The overrides of each trial, numbers to three digits.

    Args:
        number: of trials; those of a smaller number are the first of these.
        seed: of the draws.
        space: for each key its `choices`, or `low` and `high`, between which it is uniform, or
            uniform in the logarithm with `log`.
    """
    generator = random.Random(seed)
    return [
        [f"{key}={_draw(generator, **values)}" for key, values in space.items()]
        for _ in range(number)
    ]


def _draw(
    generator: random.Random,
    choices: list[Any] | None = None,
    low: float = 0.0,
    high: float = 1.0,
    log: bool = False,
) -> Any:
    if choices:
        return generator.choice(choices)
    if log:
        low, high = math.log(low), math.log(high)
    value = generator.uniform(low, high)
    return float(f"{math.exp(value) if log else value:.3g}")
