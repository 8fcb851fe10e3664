"""One thing to find in a long row, and to give back at its end.

Shape suffixes: B rows of a batch, T time, D digits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from newllm.config.faults import raise_faults, too_small
from newllm.data.tasks.task import NOT_SCORED, Rows, Task


class Induction(Task):
    """The symbol that followed a special symbol, asked for when that comes again at the end.

    The induction heads of "Mamba" (Gu and Dao 2023, arXiv 2312.00752), with a vocabulary of 16,
    trained at 256 positions and tested at up to 2**20. A length counts positions, from 3.

    Difference: the special symbol is not one of the 16.

    Args:
        kinds: kinds of symbols beside the special one.
        settings: of `Task`.
    """

    least_length = 3
    answers_are_items = True

    def __init__(self, kinds: int = 16, **settings: Any) -> None:
        raise_faults(too_small("data", 2, kinds=kinds))
        self.kinds = kinds
        super().__init__("induction", kinds + 1, kinds, **settings)

    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> Rows:
        """Uniform symbols, with the special one, `kinds`, at a uniform place and at the end."""
        symbols_BT = rng.integers(self.kinds, size=(num_rows, length))
        row_B, place_B = np.arange(num_rows), rng.integers(length - 2, size=num_rows)
        answers_BT = np.full_like(symbols_BT, NOT_SCORED)
        answers_BT[:, -1] = symbols_BT[row_B, place_B + 1]
        symbols_BT[row_B, place_B] = symbols_BT[:, -1] = self.kinds
        return Rows(symbols_BT, answers_BT)

    def information(self, length: int) -> float:
        """The symbol, or that it comes next."""
        return math.log2(self.kinds + (length > self.least_length))


class Passkey(Task):
    """A number hidden in noise, asked for at the end, digit by digit.

    After "Landmark Attention" (Mohtashami and Jaggi 2023, arXiv 2305.16300), where the noise is
    repeated sentences and the key has five digits. Here noise is one of `kinds` symbols for each
    position, a mark stands before the key, and a blank is read for each digit of the answer. A
    length counts all positions before the answer. Slices are the quarters of the row that the mark
    stands in.

    Args:
        kinds: kinds of noise.
        digits: digits of the key, of ten kinds.
        settings: of `Task`.
    """

    slices = ("first_quarter", "second_quarter", "third_quarter", "last_quarter")
    answers_are_items = True

    def __init__(self, kinds: int = 16, digits: int = 5, **settings: Any) -> None:
        raise_faults(too_small("data", 1, kinds=kinds, digits=digits))
        self.kinds, self.digits, self.least_length = kinds, digits, digits + 1
        super().__init__("passkey", 12 + kinds, 10, **settings)

    def num_positions(self, length: int) -> int:
        """Noise, mark and key, and a blank for each digit."""
        return length + self.digits

    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> Rows:
        """Digits are 0 ... 9, the mark 10, a blank 11, noise the rest."""
        symbols_BT = 12 + rng.integers(self.kinds, size=(num_rows, length + self.digits))
        key_BD = rng.integers(10, size=(num_rows, self.digits))
        place_B = rng.integers(length - self.digits, size=num_rows)
        np.put_along_axis(symbols_BT, place_B[:, None], 10, axis=1)
        np.put_along_axis(symbols_BT, place_B[:, None] + 1 + np.arange(self.digits), key_BD, axis=1)
        symbols_BT[:, length:] = 11
        answers_BT = np.full_like(symbols_BT, NOT_SCORED)
        answers_BT[:, length:] = key_BD
        return Rows(symbols_BT, answers_BT, 4 * place_B // (length - self.digits))

    def information(self, length: int) -> float:
        """The key."""
        return self.digits * math.log2(10)
