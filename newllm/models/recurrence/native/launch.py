"""Compiling the native code, and putting torch's threads to work on it."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import carray

from newllm.models.recurrence.native.backward import backward
from newllm.models.recurrence.native.call import BACKWARD, CALL
from newllm.models.recurrence.native.compiling import compiled_entry, digest_of, one_at_a_time
from newllm.models.recurrence.native.forward import forward
from newllm.models.recurrence.native.team import run_on_team
from newllm.models.recurrence.notice import tell_of_compiling

WHAT = "the recurrence for this processor"
SECONDS = 15  # that compiling takes, roughly


def _entries(sources: str) -> dict[tuple[str, torch.dtype], Callable[[Any], None]]:
    """The functions to compile; `sources` as in `digest_of`."""

    def forward_float32(call: Any) -> None:
        sources  # noqa: B018
        forward(carray(call, 1)[0], np.float32)

    def forward_float64(call: Any) -> None:
        sources  # noqa: B018
        forward(carray(call, 1)[0], np.float64)

    def backward_float32(call: Any) -> None:
        sources  # noqa: B018
        backward(carray(call, 1)[0], np.float32)

    def backward_float64(call: Any) -> None:
        sources  # noqa: B018
        backward(carray(call, 1)[0], np.float64)

    return {
        ("forward", torch.float32): forward_float32,
        ("forward", torch.float64): forward_float64,
        ("backward", torch.float32): backward_float32,
        ("backward", torch.float64): backward_float64,
    }


def prepare(directions: Collection[str], dtype: torch.dtype) -> None:
    """Compile the native code for a type, or load it from numba's cache.

    One process compiles a type while the others wait and then load the result.
    """
    if all((direction, dtype) in _ready for direction in directions):
        return
    with one_at_a_time(dtype), tell_of_compiling(WHAT, SECONDS):
        for direction in directions:
            if (direction, dtype) not in _ready:
                _ready[direction, dtype] = _compiled(direction, dtype)


_ready: dict[tuple[str, torch.dtype], Any] = {}


def _compiled(direction: str, dtype: torch.dtype) -> Any:
    sources = digest_of(Path(__file__).parent)
    return compiled_entry(_entries(sources)[direction, dtype], CALL)


def run(direction: str, dtype: torch.dtype, fields: Mapping[str, Any]) -> None:
    """Take all steps of a segment, "forward" or "backward".

    Args:
        direction: which way; `prepare` must have been asked for it.
        dtype: of all arrays, float32 or float64.
        fields: those of `CALL`, of `BACKWARD` on the way back only. An array stands for its
            address, several for a table of addresses, None for 0; `sync` must hold 16 zeros.
    """
    missing = {*(CALL.names or ())} - {*fields}
    assert not missing or (direction == "forward" and missing == {*BACKWARD}), missing
    call = np.zeros(1, CALL)
    tables = []  # alive until the call is over
    for name, value in fields.items():
        if isinstance(value, list):
            tables.append(np.array([array.data_ptr() for array in value]))
            value = tables[-1]
        if isinstance(value, torch.Tensor):
            call[name] = value.data_ptr()
        elif isinstance(value, np.ndarray):
            call[name] = value.ctypes.data
        else:
            call[name] = value or 0
    run_on_team(_ready[direction, dtype], call.ctypes.data, int(fields["num_threads"]))
