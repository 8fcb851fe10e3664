"""Numbers that no library checks: each is finite and in a range that means something."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from newllm.config.origins import leaves, origin, raw

LARGEST = 2**63 - 1  # what torch and numpy take for a whole number

HOLDS: dict[str, Callable[[float], bool]] = {
    "above 0": lambda number: number > 0,
    "at least 0": lambda number: number >= 0,
    "at least 1": lambda number: number >= 1,
    "at least 0 and below 1": lambda number: 0 <= number < 1,
    # Lightning would make a list of them.
    "1: a run is one process on one device": lambda number: number < 1000,
}
# By part: what its arguments must be. The package checks those of its own models and data, torch
# the others of its optimizers and schedules.
RANGES: dict[str, dict[str, str]] = {
    "optimizer": {
        "above 0": "lr",
        "at least 0 and below 1": "momentum dampening alpha",
    },
    "schedule": {
        "above 0": "max_lr gamma div_factor final_div_factor start_factor factor",
        "at least 0": "eta_min end_factor",
        "at least 1": "T_max step_size total_iters",
        "at least 0 and below 1": "base_momentum max_momentum",
    },
    "callbacks": {
        "at least 0": "patience min_delta small num_steps",
        "at least 1": "every_n_steps every_n_epochs num_sentences",
    },
    "trainer": {"1: a run is one process on one device": "devices"},
    "budget": {"at least 1": "parameters state_bytes step widths state_widths"},
}
# The numbers that are used; others are told to be unread.
USED = ("model", "data", "optimizer", "schedule", "trainer", "logger", "callbacks", "budget")


def number_faults(config: DictConfig) -> Iterator[str]:
    """A line for each number of the composed configuration that is not finite or out of range.

    It names the key where the number is set. A value that cannot be resolved is another's fault.
    """
    told = set()
    content = raw(config)
    for part in (*USED, "recipe.gradient_clip"):
        node = OmegaConf.select(config, part)
        if not OmegaConf.is_config(node):
            continue
        for name, value in leaves(OmegaConf.to_container(node, resolve=True), part):
            for wanted in _unmet(part.partition(".")[0], name, value):
                key = origin(content, name)
                told.add(f"{key}={_shown(value)}: must be {wanted}")
    yield from sorted(told)


def _unmet(part: str, name: str, value: Any) -> Iterator[str]:
    """What the numbers of a value would have to be, and are not."""
    # Of a list in a list, such as [[EPOCH,NORM],...], and of {NAME: WIDTH} as well.
    numbers = list(_numbers(value))
    if not all(math.isfinite(number) for number in numbers):
        yield "a finite number" if isinstance(value, float) else "finite numbers"
        return
    for wanted, arguments in RANGES.get(part, {}).items():
        if {*name.split(".")} & {*arguments.split()} and not all(map(HOLDS[wanted], numbers)):
            yield wanted
            return
    if any(abs(number) > LARGEST for number in numbers if isinstance(number, int)):
        yield f"at most {LARGEST}"


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _shown(value: Any) -> str:
    return str(value).replace(" ", "")
