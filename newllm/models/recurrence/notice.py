"""What a user is told who has to wait for a compiler."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 2.0  # seconds; to load what was compiled before takes less


@contextmanager
def tell_of_compiling(what: str, seconds: int) -> Iterator[None]:
    """Say what is compiled, unless it is quick; then how long it took.

    Args:
        what: is compiled.
        seconds: that it takes, roughly.
    """
    started, said = time.monotonic(), threading.Event()

    def say() -> None:
        said.set()
        print(f"compiling {what} (some {seconds} s) ...", end="", flush=True, file=sys.stderr)

    timer = threading.Timer(PATIENCE, say)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if said.is_set():
            print(f" {time.monotonic() - started:.0f} s", file=sys.stderr)
