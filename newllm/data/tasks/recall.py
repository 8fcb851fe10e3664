"""Multi-query associative recall.

Shape suffixes: B rows of a batch, T time, P pairs, K keys.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from newllm.config.faults import raise_faults, too_small
from newllm.data.tasks.task import NOT_SCORED, Rows, Task

LEAST_POSITIONS = 4  # of a pair: key and value, and a query and a filler
GAP_POWER = 0.01  # the paper's alpha: the nearer a place, the likelier a query


class Recall(Task):
    """Pairs of a key and a value, then each key again, answered by its value (MQAR).

    Of "Zoology" (Arora et al. 2023, arXiv 2312.04927): half of the vocabulary are keys, half are
    values, and keys are asked at even places, drawn from a power law. A length counts pairs. Rows
    have the published numbers of positions for training, 64 for 4 pairs, 128 for 8, and 256 for 16,
    32 and 64, and for tests of more pairs, 512 for 128 and 1,024 for 256.

    Differences:
        - Values are drawn with replacement, so that each holds exactly log2 K bits.
        - Between queries stands a filler symbol of its own, not any symbol, which by chance would
          ask for a key again.
        - Any key may be asked first. In the published code, the keys of the first pairs tend to be
          asked first, since it draws their places first.
        - Training takes all numbers of pairs from the first of `lengths` to the last. The published
          rows have 4, 8, 16, 32 or 64 pairs, more than half of them 4.
        - The published tests of 8, 16 and 32 pairs have shorter rows: 64, 64 and 128 positions.

    Args:
        vocabulary: keys and values together.
        positions_per_pair: of rows with few pairs, as long as they have at most 256 positions; 16
            as published. With 4, all rows have four positions for each pair, so that a batch of few
            pairs has up to four times as many answers.
        settings: of `Task`.
    """

    answers_are_items = True

    def __init__(
        self, vocabulary: int = 8192, positions_per_pair: int = 16, **settings: Any
    ) -> None:
        faults = too_small("data", LEAST_POSITIONS, positions_per_pair=positions_per_pair)
        if vocabulary < 4 or vocabulary % 2:
            faults.append(f"data.vocabulary={vocabulary}: must be even, from 4")
        raise_faults(faults)
        self.num_keys, self.positions_per_pair = vocabulary // 2, positions_per_pair
        super().__init__("recall", vocabulary + 1, self.num_keys, **settings)
        most_pairs = max(*settings["lengths"], *settings.get("evaluation_lengths", ()))
        if most_pairs > self.num_keys:
            raise ValueError(
                f"data.vocabulary={vocabulary}: has {self.num_keys} keys for {most_pairs} pairs"
            )

    def num_positions(self, length: int) -> int:
        """As published by default; between those numbers of pairs likewise."""
        return max(LEAST_POSITIONS * length, min(self.positions_per_pair * length, 256))

    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> Rows:
        """Keys are 0 ... K - 1, values K ... 2K - 1 as symbols and 0 ... K - 1 as answers."""
        keys_BP = _distinct(rng, num_rows, self.num_keys, length)
        values_BP = rng.integers(self.num_keys, size=keys_BP.shape)
        symbols_BT = np.full((num_rows, self.num_positions(length)), 2 * self.num_keys)
        symbols_BT[:, 0 : 2 * length : 2] = keys_BP
        symbols_BT[:, 1 : 2 * length : 2] = self.num_keys + values_BP
        num_places = (symbols_BT.shape[1] - 2 * length) // 2
        # The largest of log p plus Gumbel noise are a draw without replacement.
        weight_G = (GAP_POWER - 1) * np.log(np.arange(1, num_places + 1))
        noisy_BG = weight_G + rng.gumbel(size=(num_rows, num_places))
        place_BP = 2 * length + 2 * noisy_BG.argsort(1)[:, -length:]
        rng.permuted(place_BP, axis=1, out=place_BP)  # no key is nearer by its number
        np.put_along_axis(symbols_BT, place_BP, keys_BP, axis=1)
        answers_BT = np.full_like(symbols_BT, NOT_SCORED)
        np.put_along_axis(answers_BT, place_BP, values_BP, axis=1)
        return Rows(symbols_BT, answers_BT)

    def information(self, length: int) -> float:
        """The value of each key.

        So few bits are enough if K is a power of a prime: those of the polynomial of degree P - 1
        over the field of K elements that takes each key to its value.
        """
        return length * math.log2(self.num_keys)


def _distinct(rng: np.random.Generator, num_rows: int, num_kinds: int, number: int) -> np.ndarray:
    """Rows of different numbers below `num_kinds`, in random order."""
    return np.stack([rng.choice(num_kinds, number, replace=False) for _ in range(num_rows)])
