"""Threads that do one thing together: those of torch's own pool.

An extra pool would have to share the cores with torch's, whose threads stay awake for a while after
each of their tasks.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from newllm.models.recurrence.native.call import PANEL
from newllm.models.recurrence.native.tile import compiled

SPINS = 1 << 14  # looks at a barrier before a thread lets others have its core
LINE_BYTES = 64  # of the cache
LIMITS = (
    *("omp_get_dynamic", "omp_in_parallel"),
    *("omp_get_max_active_levels", "omp_get_thread_limit"),
)


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
def meet(call):
    """Wait until all threads are here."""
    if call.num_threads > 1:
        counter = call.sync + LINE_BYTES  # in another line of the cache than the tickets
        arrived = fetch_add(counter)
        goal = (arrived // call.num_threads + 1) * call.num_threads
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


@functools.cache
def openmp() -> Any | None:
    """The library of OpenMP that torch uses, or None where it cannot be asked to run a function."""
    folder = Path(torch.__file__).parent / "lib"
    for library in (folder / "libtorch_cpu.so", folder / "libtorch_cpu.dylib"):
        if library.is_file():
            loaded = ctypes.CDLL(str(library))  # its symbols include those of what it depends on
            if all(hasattr(loaded, name) for name in ("GOMP_parallel", *LIMITS)):
                loaded.GOMP_parallel.argtypes = [*[ctypes.c_void_p] * 2, *[ctypes.c_uint] * 2]
                loaded.GOMP_parallel.restype = None
                return loaded
    return None


def num_threads() -> int:
    """How many threads OpenMP will give: who waits for more of them waits for ever."""
    library = openmp()
    if library is None or library.omp_get_dynamic() or library.omp_in_parallel():
        return 1
    if library.omp_get_max_active_levels() < 1:
        return 1
    return min(torch.get_num_threads(), int(library.omp_get_thread_limit()))


def run_on_team(function: Any, argument: int, threads: int) -> None:
    """Call a function, with an address as its argument, on so many threads at once."""
    library = openmp()
    if library is None or threads == 1:
        function.ctypes(argument)
    else:
        library.GOMP_parallel(function.address, argument, threads, 0)
