"""Compiling the native code, and putting torch's threads to work on it."""

import functools
import hashlib
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import carray, cfunc, from_dtype, types

from newllm.models.native.backward import backward
from newllm.models.native.forward import forward
from newllm.models.native.plan import BACKWARD, PLAN
from newllm.models.native.team import run_on_team

PATIENCE = 2.0  # seconds; to load what was compiled before takes less
NOTICE = "compiling the recurrence for this processor; some 20 s, this once"


def _entries(sources: str) -> dict[tuple[str, torch.dtype], Callable[[Any], None]]:
    """The functions to compile.

    Numba's cache notices what they close over, so `sources` is a digest of all these files; alone
    it would notice changes in this one only.
    """

    def forward_float32(plan: Any) -> None:
        sources  # noqa: B018
        forward(carray(plan, 1)[0], np.float32)

    def forward_float64(plan: Any) -> None:
        sources  # noqa: B018
        forward(carray(plan, 1)[0], np.float64)

    def backward_float32(plan: Any) -> None:
        sources  # noqa: B018
        backward(carray(plan, 1)[0], np.float32)

    def backward_float64(plan: Any) -> None:
        sources  # noqa: B018
        backward(carray(plan, 1)[0], np.float64)

    return {
        ("forward", torch.float32): forward_float32,
        ("forward", torch.float64): forward_float64,
        ("backward", torch.float32): backward_float32,
        ("backward", torch.float64): backward_float64,
    }


@functools.cache
def _compiled(direction: str, dtype: torch.dtype) -> Any:
    files = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    signature = types.void(types.CPointer(from_dtype(PLAN)))
    function = _entries(digest)[direction, dtype]
    notice = threading.Timer(PATIENCE, print, [NOTICE], {"file": sys.stderr})
    notice.start()
    try:
        return cfunc(signature, cache=True)(function)
    except (RuntimeError, OSError):  # nowhere to keep the result
        return cfunc(signature)(function)
    finally:
        notice.cancel()


def run(direction: str, dtype: torch.dtype, fields: Mapping[str, Any]) -> None:
    """Take all steps of a segment, "forward" or "backward".

    Args:
        direction: which way.
        dtype: of all arrays, float32 or float64.
        fields: those of `PLAN`, of `BACKWARD` on the way back only. An array stands for its
            address, several for a table of addresses, None for 0; `sync` must hold 16 zeros.
    """
    missing = {*(PLAN.names or ())} - {*fields}
    assert not missing or (direction == "forward" and missing == {*BACKWARD}), missing
    plan = np.zeros(1, PLAN)
    tables = []  # alive until the call is over
    for name, value in fields.items():
        if isinstance(value, list):
            tables.append(np.array([array.data_ptr() for array in value]))
            value = tables[-1]
        if isinstance(value, torch.Tensor):
            plan[name] = value.data_ptr()
        elif isinstance(value, np.ndarray):
            plan[name] = value.ctypes.data
        else:
            plan[name] = value or 0
    run_on_team(_compiled(direction, dtype), plan.ctypes.data, int(fields["num_threads"]))
