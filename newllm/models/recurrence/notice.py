"""A notice for a user who has to wait for a compiler."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 2.0  # seconds; loading the result of an earlier compilation takes less


@contextmanager
def tell_of_compiling(what: str, seconds: int) -> Iterator[None]:
    """Print what is being compiled, and about how many seconds it takes, unless it is quick."""
    line = f"compiling {what} (about {seconds} s) ..."
    timer = threading.Timer(PATIENCE, print, [line], {"file": sys.stderr, "flush": True})
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
