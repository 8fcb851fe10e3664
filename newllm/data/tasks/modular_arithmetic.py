"""Values of expressions modulo a number, without and with brackets.

Shape suffixes: B rows of a batch, T time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from newllm.config.faults import no_such_option, raise_faults, too_small
from newllm.data.tasks.automata import SCORED
from newllm.data.tasks.task import NOT_SCORED, Rows, Task

PLUS, MINUS, TIMES, OPEN, CLOSE, EQUALS = range(6)  # symbols after the numbers


class ModularArithmetic(Task):
    """The value modulo 5 of numbers joined by +, - and *, without brackets.

    Of Delétang et al. 2023 ("Modular Arithmetic (Simple)"), where products come before sums. A
    length counts symbols; an even one is cut by one, since numbers and signs alternate.

    Args:
        modulus: the numbers are 0 ... modulus - 1.
        scored: `every` scores the value after each number, `last` only that of the whole.
        settings: of `Task`.
    """

    def __init__(self, modulus: int = 5, scored: str = "every", **settings: Any) -> None:
        raise_faults(
            [*no_such_option("data", SCORED, scored=scored), *too_small("data", 2, modulus=modulus)]
        )
        self.modulus, self._scored = modulus, scored
        super().__init__("modular_arithmetic", modulus + 3, modulus, **settings)

    def num_positions(self, length: int) -> int:
        """The next odd number down."""
        return length - 1 + length % 2

    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> Rows:
        """Uniform numbers and signs, and the value of each prefix that ends in a number."""
        num_positions = self.num_positions(length)
        symbols_BT = rng.integers(self.modulus, size=(num_rows, num_positions))
        symbols_BT[:, 1::2] = self.modulus + rng.integers(3, size=(num_rows, num_positions // 2))
        answers_BT = np.full_like(symbols_BT, NOT_SCORED)
        # The value is that of the finished terms plus the product at hand.
        total_B, product_B = np.zeros(num_rows, np.int64), symbols_BT[:, 0]
        answers_BT[:, 0] = product_B
        for t in range(2, num_positions, 2):
            sign_B, number_B = symbols_BT[:, t - 1] - self.modulus, symbols_BT[:, t]
            is_product_B = sign_B == 2
            total_B = np.where(is_product_B, total_B, total_B + product_B) % self.modulus
            signed_B = np.where(sign_B == 1, -number_B, number_B)
            product_B = np.where(is_product_B, product_B * number_B, signed_B) % self.modulus
            answers_BT[:, t] = (total_B + product_B) % self.modulus
        if self._scored == "last":
            answers_BT[:, :-1] = NOT_SCORED
        return Rows(symbols_BT, answers_BT)

    def information(self, length: int) -> float:
        """Two residues: the sum of the finished terms and the product at hand.

        Rows of fewer than five positions need less.
        """
        return 2 * math.log2(self.modulus)


class BracketedArithmetic(Task):
    """The value modulo 5 of an expression in which every operation has its brackets.

    Of Delétang et al. 2023 ("Modular Arithmetic", a context-free task): `x`, `-x`, `(x)` and
    `(-x)` for a number x, and `(A + B)`, `(A - B)`, `(A * B)` for expressions A and B, whose share
    of the length is uniform. `=` follows, and is answered. A length counts the symbols before it.
    The published code leaves products out unless it is asked for them; the paper has them.

    Args:
        modulus: the numbers are 0 ... modulus - 1.
        settings: of `Task`.
    """

    def __init__(self, modulus: int = 5, **settings: Any) -> None:
        raise_faults(too_small("data", 2, modulus=modulus))
        self.modulus = modulus
        super().__init__("bracketed_arithmetic", modulus + 6, modulus, **settings)

    def num_positions(self, length: int) -> int:
        """The expression and `=`."""
        return length + 1

    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> Rows:
        """Expressions, answered in their last position."""
        symbols_BT = np.empty((num_rows, length + 1), np.int64)
        answers_BT = np.full((num_rows, length + 1), NOT_SCORED)
        for row in range(num_rows):
            symbols, answers_BT[row, -1] = self._expression(rng, length)
            symbols_BT[row] = [*symbols, self.modulus + EQUALS]
        return Rows(symbols_BT, answers_BT)

    def _expression(self, rng: np.random.Generator, length: int) -> tuple[list[int], int]:
        """The symbols of an expression of a length, and its value."""
        sign = {name: self.modulus + name for name in range(6)}
        if length <= 4:
            value = int(rng.integers(self.modulus))
            symbols = [value] if length % 2 else [sign[MINUS], value]
            if length > 2:
                symbols = [sign[OPEN], *symbols, sign[CLOSE]]
            return symbols, value if length % 2 else -value % self.modulus
        left_length = int(rng.integers(1, length - 3))
        left, left_value = self._expression(rng, left_length)
        right, right_value = self._expression(rng, length - 3 - left_length)
        operation = int(rng.integers(3))
        value = (
            left_value + right_value,
            left_value - right_value,
            left_value * right_value,
        )[operation] % self.modulus
        return [sign[OPEN], *left, sign[operation], *right, sign[CLOSE]], value

    def information(self, length: int) -> float:
        """A number and an operation for each bracket that can be open at once.

        That is an upper bound: brackets that close together are one affine map, which has no more
        than `modulus**2` forms.
        """
        return max(1, (length - 1) // 4) * math.log2(3 * self.modulus)
