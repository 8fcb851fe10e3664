"""Imports of what takes long: torch, Lightning and all that stands on them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import large libraries a quarter faster, without Python's search for cyclic garbage.

    Modules make a million objects that stay. The search would visit them again and again while they
    come in, and later in the run, too; so they are exempt from it for good.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
