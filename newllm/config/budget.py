"""The sizes of a model that follow from the budget of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Each cost with the key of the sizes that follow from it.
PAIRS = (("parameters", "widths"), ("state_bytes", "state_widths"))


def following(widths: Mapping[str, float | None]) -> dict[str, float]:
    """The sizes that follow from a budget, as multiples of its width."""
    return {str(name): multiple for name, multiple in widths.items() if multiple is not None}


def named_sizes(budget: Mapping[str, Any]) -> dict[str, Any]:
    """A budget without the sizes that do not follow from it."""
    return {
        key: following(value or {}) if key in ("widths", "state_widths") else value
        for key, value in budget.items()
    }


def decided_sizes(budget: Mapping[str, Any]) -> dict[str, str]:
    """The sizes that a budget decides on, each with the setting that does so."""
    return {
        name: f"budget.{what}={budget[what]}"
        for what, names in PAIRS
        if budget.get(what) is not None
        for name in following(budget[names])
    }
