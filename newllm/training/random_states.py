"""The states of all random number generators, to be restored."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The states of all random number generators, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        **torch_states(),
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restore what `random_states` returned."""
    set_torch_states(states)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])


def torch_states() -> dict[str, Any]:
    """The states of torch's generators: of the CPU, and of the accelerator if there is one."""
    device = _device_module()
    return {
        "torch": torch.get_rng_state(),
        "device": None if device is None else device.get_rng_state(),
    }


def set_torch_states(states: dict[str, Any]) -> None:
    """Restore what `torch_states` returned."""
    torch.set_rng_state(states["torch"])
    device = _device_module()
    if device is not None and states["device"] is not None:
        device.set_rng_state(states["device"])


def swap_numpy_generator(generator: np.random.BitGenerator) -> np.random.BitGenerator:
    """Give the functions of `numpy.random` another generator; returns the one that they had."""
    before: np.random.BitGenerator = np.random.get_bit_generator()  # type: ignore[attr-defined]
    np.random.set_bit_generator(generator)  # type: ignore[attr-defined]
    return before


def _device_module() -> Any:
    """The module of the accelerator, such as `torch.cuda`; None without one."""
    if not torch.accelerator.is_available():  # torch may have been built for one that is missing
        return None
    return torch.get_device_module(torch.accelerator.current_accelerator())
