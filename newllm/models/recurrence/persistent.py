"""The built-in cell over time on a GPU: a kernel that keeps the weights on the processor."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from newllm.models.cell import Cell, ContextCell
from newllm.models.layer import State
from newllm.models.recurrence.built_in import is_built_in, is_built_in_multihead
from newllm.models.recurrence.checking import autocast_dtype, check_against_loop
from newllm.models.recurrence.compiled import kind_of
from newllm.models.recurrence.fused import FEW_STEPS, Fused
from newllm.models.recurrence.kernel.weights import TYPES, bytes_needed
from newllm.models.recurrence.reference import Chunk

INTERPRETED_BYTES = 227 * 1024  # that a processor of an H100 has for a program


class Persistent(Fused):
    """Carries a built-in cell over time by one Triton kernel in each direction.

    The kernels loop over time themselves and keep all weights of the cell in the shared memory of
    a processor (`newllm.models.recurrence.kernel`). For any cell, device or type that they do not
    support, this is `Fused`, and says so once on standard error. The first steps are compared with
    those of the plain loop.

    Args:
        compile: as in `Fused`.
        strict: whether to raise a ValueError instead of being `Fused`, so that a measurement is
            that of the kernels.
    """

    def __init__(self, compile: bool = True, strict: bool = False) -> None:
        super().__init__(compile)
        self._settings = compile, strict
        self._reasons: dict[Any, str | None] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Persistent:
        return Persistent(*self._settings)

    def __reduce__(self) -> tuple[type[Persistent], tuple[bool, bool]]:
        return Persistent, self._settings

    @torch.compiler.disable
    def __call__(self, cell: Cell, chunk: Chunk) -> tuple[Tensor, State]:
        """Read a chunk."""
        is_short = chunk.inputs_BTE.shape[1] < FEW_STEPS or torch.compiler.is_exporting()
        if is_short or self._reason(cell, chunk):
            return super().__call__(cell, chunk)
        return _read(cell, chunk)

    def _reason(self, cell: Cell, chunk: Chunk) -> str | None:
        """Why the kernels cannot read a chunk, if they cannot; found once for each kind of call."""
        kind = chunk.inputs_BTE.device, autocast_dtype(chunk), kind_of(cell, chunk)
        if kind not in self._reasons:
            reason = why_not(cell, chunk) or _failure(cell, chunk)
            if reason and self._settings[1]:
                raise ValueError(f"recurrence=persistent: {reason}")
            if reason and reason not in self._reasons.values():
                name = type(cell).__name__
                print(f"{name}: recurrence=fused instead of persistent; {reason}", file=sys.stderr)
            self._reasons[kind] = reason
        return self._reasons[kind]


def _read(cell: Cell, chunk: Chunk) -> tuple[Tensor, State]:
    from newllm.models.recurrence.kernel.chunk import read_chunk  # it needs Triton

    assert isinstance(cell, ContextCell)
    return read_chunk(cell, chunk, _dtype(cell, chunk))


def _dtype(cell: Cell, chunk: Chunk) -> torch.dtype:
    """The type of products."""
    return autocast_dtype(chunk) or next(cell.parameters()).dtype


def why_not(cell: Cell, chunk: Chunk) -> str | None:
    """What the kernels lack to read a chunk, as far as it is known before they are compiled."""
    device = chunk.inputs_BTE.device
    if not (is_built_in(cell) or is_built_in_multihead(cell)):
        return "the kernel knows only a ContextCell or MultiHeadCell of built-in parts"
    assert isinstance(cell, ContextCell)
    if find_spec("triton") is None:
        return "triton is not installed"
    import triton

    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        return "the kernel takes a GPU"
    types = {weight.dtype for weight in cell.parameters()}
    dtype = _dtype(cell, chunk)
    if len(types) > 1 or not {*types, dtype} <= {*TYPES}:
        return "the kernel takes weights of one type, float32 or bfloat16"
    needed, available = bytes_needed(cell, dtype), INTERPRETED_BYTES
    if device.type == "cuda":
        driver = triton.runtime.driver.active
        available = driver.utils.get_device_properties(device.index)["max_shared_mem"]
    if needed > available:
        return (
            f"its weights take {needed // 1024} KiB of the {available // 1024} KiB that a "
            "processor has for a program"
        )
    return None


def _failure(cell: Cell, chunk: Chunk) -> str | None:
    """How the kernels fail in the first steps; None if they give what the plain loop gives."""
    try:
        check_against_loop(_read, cell, chunk)
        return None
    except Exception as error:  # of many kinds, and other ways are always right
        return (str(error).strip() or type(error).__name__).splitlines()[0]
