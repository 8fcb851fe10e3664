"""How much memory something takes at its peak."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from resource import getpagesize

STATUS = Path("/proc/self/statm")
INTERVAL = 0.002  # seconds between two looks


def can_measure() -> bool:
    """Whether this operating system tells what a process holds; Linux does."""
    return STATUS.is_file()


def resident_bytes() -> int:
    """What this process holds now."""
    return int(STATUS.read_text().split()[1]) * getpagesize()


def peak_bytes(action: Callable[[], object]) -> int:
    """By how much an action raises this process's memory at most, looking again and again.

    The system's own record of the peak starts from that of the parent process, so it is of no use.
    """
    before = peak = resident_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(INTERVAL):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
        peak = max(peak, resident_bytes())
    finally:
        done.set()
        watcher.join()
    return peak - before
