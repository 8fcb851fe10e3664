"""Ranges of numbers, so that most faults show before the classes are imported."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from newllm.config.origins import leaves, origin, raw

LARGEST = 2**63 - 1  # whole number of torch and numpy
HOLDS: dict[str, Callable[[float], bool]] = {
    "above 0": lambda number: number > 0,
    "at least 0": lambda number: number >= 0,
    "at least 1": lambda number: number >= 1,
    "at least 0 and below 1": lambda number: 0 <= number < 1,
}
# By part: the arguments with a range. The classes check the others.
RANGES: dict[str, dict[str, str]] = {
    "model": {
        "at least 1": "embedding_dim context_dim hidden_dim feedforward_dim num_layers num_heads "
        "recurrent_layers num_cells skip_steps periods",
        "at least 0 and below 1": "dropout embedding_dropout output_dropout",
    },
    "data": {"at least 1": "batch_size"},
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
        "above 0": "peak_tflops",
        "at least 0": "patience min_delta small num_steps",
        "at least 1": "every_n_steps every_n_epochs num_sentences",
    },
    "budget": {
        "above 0": "widths state_widths",
        "at least 1": "parameters state_bytes step",
    },
}
PARTS = ("model", "data", "optimizer", "schedule", "trainer", "logger", "callbacks", "budget")


def number_faults(config: DictConfig) -> Iterator[str]:
    """A line for each number that is not finite or out of range, by the key where it is set."""
    content = raw(config)
    faults = set()
    for part in (*PARTS, "recipe.gradient_clip"):
        node = OmegaConf.select(config, part)
        if OmegaConf.is_config(node):
            for name, value in leaves(OmegaConf.to_container(node, resolve=True), part):
                if wanted := _unmet(part, name, list(_numbers(value))):
                    shown = str(value).replace(" ", "")
                    faults.add(f"{origin(content, name)}={shown}: must be {wanted}")
    yield from sorted(faults)


def _unmet(part: str, name: str, numbers: list[int | float]) -> str | None:
    """The range that the numbers of a value miss."""
    if not all(map(math.isfinite, numbers)):
        return "finite"
    for wanted, arguments in RANGES.get(part, {}).items():
        if {*name.split(".")} & {*arguments.split()} and not all(map(HOLDS[wanted], numbers)):
            return wanted
    if any(isinstance(number, int) and abs(number) > LARGEST for number in numbers):
        return f"at most {LARGEST}"
    return None


def _numbers(value: Any) -> Iterator[int | float]:
    """The numbers of a value, which may be lists in a list, such as [[EPOCH,NORM],...]."""
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
