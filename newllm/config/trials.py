"""The trials of a search: all of a grid, or drawn independently."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any


def draw_trials(
    space: Mapping[str, Mapping[str, Any]], number: int | None = None, seed: int = 1
) -> list[list[str]]:
    """The overrides of each trial, drawn numbers to three digits.

    Args:
        space: for each key its `choices`, or `low` and `high`, between which it is uniform, or
            uniform in the logarithm with `log`.
        number: of trials; those of a smaller number are the first of these. None takes every
            combination of the choices, a grid.
        seed: of the draws.
    """
    if number is None:
        choices = [[f"{key}={value}" for value in space[key]["choices"]] for key in space]
        return [[*trial] for trial in itertools.product(*choices)]
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
