"""Threads that do one thing together: those of torch's own pool.

An extra pool would have to share the cores with torch's, whose threads stay awake for a while after
each of their tasks.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from newllm.models.native.plan import PANEL
from newllm.models.native.tile import compiled

SPINS = 1 << 14  # looks at a barrier before a thread lets others have its core
LINE_BYTES = 64  # of the cache


@intrinsic
def fetch_add(typing_context: Any, address: Any) -> Any:
    """Add 1 to a word that all threads see; return what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        pointer = builder.inttoptr(arguments[0], word.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(word, 1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
def look(typing_context: Any, address: Any) -> Any:
    """Read a word that all threads see."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def let_others_run(typing_context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@compiled
def meet(plan):
    """Wait until all threads are here."""
    if plan.num_threads > 1:
        counter = plan.sync + LINE_BYTES  # in another line of the cache than the tickets
        arrived = fetch_add(counter)
        goal = (arrived // plan.num_threads + 1) * plan.num_threads
        spins = 0
        while look(counter) < goal:
            spins += 1
            if spins > SPINS:
                let_others_run()


@compiled
def share(num_rows, member, num_threads):
    """The panels of a thread, as rows: from, to."""
    panels = num_rows // PANEL
    return panels * member // num_threads * PANEL, panels * (member + 1) // num_threads * PANEL


@compiled
def padded_rows(width):
    return -(-width // PANEL) * PANEL


@functools.cache
def start_team() -> Callable[..., None] | None:
    """OpenMP's function that runs another one on all threads of torch's pool, if it has one."""
    folder = Path(torch.__file__).parent / "lib"
    for library in (folder / "libtorch_cpu.so", folder / "libtorch_cpu.dylib"):
        if library.is_file():
            start = getattr(ctypes.CDLL(str(library)), "GOMP_parallel", None)
            if start is not None:
                start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
                start.restype = None
                return start
    return None
