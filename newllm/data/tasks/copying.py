"""Items that have to be given back.

Shape suffixes: B rows of a batch, T time, N items.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from newllm.config.faults import raise_faults, too_small
from newllm.data.tasks.task import NOT_SCORED, Rows, Task


class Copy(Task):
    """A length of uniform items, then a blank for each, which the items answer in order.

    After "Duplicate String" of Delétang et al. 2023 (arXiv 2207.02098). There, items are of two
    kinds and are given back twice; here, the second copy alone is asked for. Blanks are read where
    the answers are due, not the answers before, so that nothing but the state holds the items.

    Args:
        kinds: kinds of items.
        settings: of `Task`.
    """

    answers_are_items = True
    reverses = False

    def __init__(self, kinds: int = 16, **settings: Any) -> None:
        raise_faults(too_small("data", 2, kinds=kinds))
        self.kinds = kinds
        super().__init__(type(self).__name__.lower(), kinds + 1, kinds, **settings)

    def num_positions(self, length: int) -> int:
        """Items and blanks."""
        return 2 * length

    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> Rows:
        """Items and blanks."""
        items_BN = rng.integers(self.kinds, size=(num_rows, length))
        blank_BN = np.full_like(items_BN, self.kinds)
        answers_BN = items_BN[:, ::-1] if self.reverses else items_BN
        return Rows(
            np.concatenate([items_BN, blank_BN], axis=1),
            np.concatenate([np.full_like(items_BN, NOT_SCORED), answers_BN], axis=1),
        )

    def information(self, length: int) -> float:
        """All items."""
        return length * math.log2(self.kinds)


class Reverse(Copy):
    """The same, answered from the last item to the first ("Reverse String")."""

    reverses = True


class SelectiveCopy(Task):
    """Some items among noise, then a blank for each item, which the items answer in order.

    Of "Mamba" (Gu and Dao 2023, arXiv 2312.00752), which has 16 items in 4,096 positions and a
    vocabulary of 16: as in the code of S4, on which it builds, 14 kinds of items, the noise and the
    blank. A length counts items and noise; places of the items are uniform. Rows that are shorter
    than `num_items` hold an item in every position.

    Args:
        kinds: kinds of items.
        num_items: items of a row.
        settings: of `Task`.
    """

    answers_are_items = True

    def __init__(self, kinds: int = 14, num_items: int = 16, **settings: Any) -> None:
        raise_faults(too_small("data", 2, kinds=kinds) + too_small("data", 1, num_items=num_items))
        self.kinds, self.num_items = kinds, num_items
        super().__init__("selective_copy", kinds + 2, kinds, **settings)

    def num_positions(self, length: int) -> int:
        """Items, noise and blanks."""
        return length + min(self.num_items, length)

    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> Rows:
        """Noise is the symbol `kinds`, a blank the one after it."""
        num_items = min(self.num_items, length)
        items_BN = rng.integers(self.kinds, size=(num_rows, num_items))
        place_BN = np.sort(rng.random((num_rows, length)).argsort(1)[:, :num_items], axis=1)
        symbols_BT = np.full((num_rows, length + num_items), self.kinds)
        np.put_along_axis(symbols_BT, place_BN, items_BN, axis=1)
        symbols_BT[:, length:] = self.kinds + 1
        answers_BT = np.full_like(symbols_BT, NOT_SCORED)
        answers_BT[:, length:] = items_BN
        return Rows(symbols_BT, answers_BT)

    def information(self, length: int) -> float:
        """All items."""
        return min(self.num_items, length) * math.log2(self.kinds)
