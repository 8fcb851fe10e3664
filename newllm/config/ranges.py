"""Numbers that no library checks: each is finite and in a range that means something."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from newllm.config.origins import leaves, origin, raw

LARGEST = 2**63 - 1  # what torch and numpy take for a whole number

Range = tuple[str, Callable[[float], bool]]
ABOVE_ZERO: Range = ("above 0", lambda number: number > 0)
FROM_ZERO: Range = ("at least 0", lambda number: number >= 0)
FROM_ONE: Range = ("at least 1", lambda number: number >= 1)
SHARE: Range = ("at least 0 and below 1", lambda number: 0 <= number < 1)

# By part and argument; what the package builds of its own models and data checks itself.
RANGES: dict[str, dict[str, Range]] = {
    "optimizer": {
        **dict.fromkeys(("lr",), ABOVE_ZERO),
        **dict.fromkeys(
            ("weight_decay", "eps", "lr_decay", "initial_accumulator_value"), FROM_ZERO
        ),
        **dict.fromkeys(("betas", "momentum", "dampening", "alpha"), SHARE),
    },
    "schedule": {
        **dict.fromkeys(("max_lr", "gamma", "div_factor", "final_div_factor"), ABOVE_ZERO),
        **dict.fromkeys(("start_factor", "factor"), ABOVE_ZERO),
        **dict.fromkeys(("eta_min", "end_factor"), FROM_ZERO),
        **dict.fromkeys(("T_max", "T_0", "T_mult", "step_size", "total_iters"), FROM_ONE),
        **dict.fromkeys(("pct_start", "base_momentum", "max_momentum"), SHARE),
    },
    "callbacks": {
        **dict.fromkeys(("patience", "min_delta", "small", "num_steps"), FROM_ZERO),
        **dict.fromkeys(("every_n_steps", "every_n_epochs", "num_sentences"), FROM_ONE),
    },
    # Lightning would make a list of them.
    "trainer": {"devices": ("1: a run is one process on one device", lambda number: number < 1000)},
    "budget": dict.fromkeys(
        ("parameters", "state_bytes", "step", "widths", "state_widths"), FROM_ONE
    ),
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
    for word in name.split("."):
        text, holds = RANGES.get(part, {}).get(word, ("", None))
        if holds and not all(map(holds, numbers)):
            yield text
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
