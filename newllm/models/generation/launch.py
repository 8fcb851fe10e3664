"""Compiling the native code that draws tokens, and calling it."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray

from newllm.models.generation.call import CALL
from newllm.models.generation.draw import draw_tokens
from newllm.models.recurrence.native import compiling
from newllm.models.recurrence.notice import tell_of_compiling

WHAT = "the generation of text for this processor"
SECONDS = 10  # that compiling takes, roughly


@cache
def _entry() -> Callable[[Any], None]:
    """The function to compile; `sources` as in `compiling.digest_of`."""
    sources = compiling.digest_of(Path(__file__).parent, Path(compiling.__file__).parent)

    def draw(call: Any) -> None:
        sources  # noqa: B018
        draw_tokens(carray(call, 1)[0])

    return draw


def is_loaded() -> bool:
    """Whether this process has the code."""
    return _compiled.cache_info().currsize > 0


@cache
def is_in_cache() -> bool:
    """Whether an earlier process has compiled the code."""
    return compiling.is_in_cache(_entry(), CALL)


def prepare() -> None:
    """Load the code, or compile it."""
    _compiled()


@cache
def _compiled() -> Any:
    with compiling.one_at_a_time("generation"), tell_of_compiling(WHAT, SECONDS):
        return compiling.compiled_entry(_entry(), CALL)


def run(call: np.ndarray) -> None:
    """Draw a block of tokens, as the one record of `CALL` says; compile the code if need be."""
    _compiled().ctypes(call.ctypes.data)
