"""The memory of a process at its peak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

PROCESS = Path("/proc/self")  # of Linux, which tells and resets the peak


def can_measure() -> bool:
    """Whether this system tells the peak."""
    return (PROCESS / "clear_refs").exists()


def peak_bytes(action: Callable[[], object]) -> int:
    """By how much an action raises the resident memory of this process at its peak."""
    (PROCESS / "clear_refs").write_text("5")  # resets the recorded peak
    before = _peak_resident_bytes()
    action()
    return _peak_resident_bytes() - before


def _peak_resident_bytes() -> int:
    _, _, after = (PROCESS / "status").read_text().partition("VmHWM:")
    return 1024 * int(after.split()[0])  # given in kB
