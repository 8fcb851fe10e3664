"""Functions compiled once for a user and machine: numba's cache, and a lock around it.

The cache is `NUMBA_CACHE_DIR` if set, else `__pycache__` beside the code, else, where that is
read-only, a folder of the user.
"""

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numba import cfunc, from_dtype, types
from numba.core.caching import FunctionCache
from numba.core.registry import cpu_target


def digest_of(*folders: Path) -> str:
    """A digest of the Python files of some folders.

    Numba's cache notices what a function closes over, but no change in another file. So a compiled
    function closes over the digest of all files that it is made from.
    """
    files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def compiled_entry(function: Callable[[Any], None], call: np.dtype[Any]) -> Any:
    """A function of a pointer to a record of this type, compiled or from the cache."""
    try:
        return cfunc(_signature(call), cache=True, error_model="numpy")(function)
    except (RuntimeError, OSError):  # nowhere to keep the result
        return cfunc(_signature(call), error_model="numpy")(function)


def is_in_cache(function: Callable[[Any], None], call: np.dtype[Any]) -> bool:
    """Whether `compiled_entry` would find the function in the cache."""
    try:
        cache = FunctionCache(function)
        return cache.load_overload(_signature(call), cpu_target.target_context) is not None
    except (RuntimeError, OSError):
        return False


def _signature(call: np.dtype[Any]) -> Any:
    return types.void(types.CPointer(from_dtype(call)))


@contextmanager
def one_at_a_time(name: object) -> Iterator[None]:
    """Let one process of a user compile what has this name while the others wait.

    Without a place for the lock, each does.
    """
    path = Path(tempfile.gettempdir()) / f"newllm-compiles-{name}-{os.getuid()}.lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
