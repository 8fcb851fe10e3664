"""Nested brackets of several kinds, of bounded depth.

Shape suffixes: B rows of a batch, T time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from newllm.config.faults import raise_faults, too_small
from newllm.data.tasks.task import NOT_SCORED, Rows, Task


class Dyck(Task):
    """The kind of the bracket that closes next, in Dyck-(k, m).

    k kinds of brackets, at most m open at once, as in "RNNs can generate bounded hierarchical
    languages with optimal memory" (Hewitt et al. 2020, arXiv 2010.07515). Where a bracket may open
    or close, either has probability 1/2, and all kinds are equally likely. A row is a prefix, so
    brackets may stay open. Scored is the position before each closing bracket, and only its kind:
    whether a bracket opens or closes is chance.

    Args:
        kinds: k.
        depth: m.
        settings: of `Task`.
    """

    least_length = 2

    def __init__(self, kinds: int = 2, depth: int = 8, **settings: Any) -> None:
        raise_faults(too_small("data", 1, kinds=kinds, depth=depth))
        self.kinds, self.depth = kinds, depth
        super().__init__("dyck", 2 * kinds, kinds, **settings)

    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> Rows:
        """Opening brackets are 0 ... k - 1, closing ones k ... 2k - 1."""
        symbols_BT = np.empty((num_rows, length), np.int64)
        answers_BT = np.full((num_rows, length), NOT_SCORED)
        stack_BM = np.zeros((num_rows, self.depth), np.int64)
        depth_B, row_B = np.zeros(num_rows, np.int64), np.arange(num_rows)
        for t in range(length):
            kind_B = rng.integers(self.kinds, size=num_rows)
            top_B = stack_BM[row_B, np.maximum(depth_B - 1, 0)]
            opens_B = (depth_B == 0) | ((depth_B < self.depth) & (rng.random(num_rows) < 0.5))
            symbols_BT[:, t] = np.where(opens_B, kind_B, self.kinds + top_B)
            if t:
                answers_BT[:, t - 1] = np.where(opens_B, NOT_SCORED, top_B)
            stack_BM[row_B[opens_B], depth_B[opens_B]] = kind_B[opens_B]
            depth_B += np.where(opens_B, 1, -1)
        return Rows(symbols_BT, answers_BT)

    def information(self, length: int) -> float:
        """The kinds of the open brackets, as far as a row can close them.

        At full depth the last one must close next, and is answered already. Rows of fewer than five
        positions need less.
        """
        return min(self.depth - 1, length // 2) * math.log2(self.kinds)
