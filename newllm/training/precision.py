"""In which floating-point numbers a run may compute, and what that costs."""

from __future__ import annotations

from typing import Any

import torch

# What Lightning takes for the same thing.
NAMES = {"None": "32-true", "32": "32-true", "64": "64-true", "bf16": "bf16-mixed"}
SUPPORTED = ("32-true", "bf16-mixed", "64-true")
REASONS = {
    "16-mixed": "float16 needs scaled gradients, which clipping and grad/norm do not undo",
    "16-true": "weights of 16 bits lose small updates",
    "bf16-true": "weights of 16 bits lose small updates",
}
SYNONYMS = {"16": "16-mixed"}


def precision_name(setting: Any) -> str:
    """The full name of a precision: `bf16-mixed` for `bf16`.

    Raises:
        ValueError: the precision is unknown, or would not train as it says.
    """
    name = NAMES.get(str(setting), str(setting))
    if name in SUPPORTED:
        return name
    reason = REASONS.get(SYNONYMS.get(name, name), "not supported")
    instead = "bf16-mixed" if "16" in name else "one of: " + ", ".join(SUPPORTED)
    raise ValueError(f"trainer.precision={setting}: {reason}; choose {instead}")


def precision_warning(setting: Any, device: torch.device) -> str | None:
    """What a user should know before waiting for a run; None if nothing."""
    if precision_name(setting) == "bf16-mixed" and device.type == "cpu":
        return (
            "trainer.precision=bf16-mixed is up to ten times slower than 32-true on a CPU, where "
            "the recurrence's machine code is for float32 and float64"
        )
    return None


def weight_dtype(setting: Any) -> torch.dtype:
    """The type that a run keeps its weights in."""
    return torch.float64 if precision_name(setting) == "64-true" else torch.float32
