"""Stationary processes of symbols, whose losses are known exactly.

Shape suffixes: B rows of a batch, T time, S states before a symbol, N states after it, O outcomes
(a symbol and the state after it), K symbols, W words (distinct pasts). All logarithms are natural;
losses are in nats per symbol.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

MOST_WINDOWS = 12
CLOSED = 1e-9  # nats between the bounds of the entropy rate
MOST_NUMBERS = 1 << 18  # joint probabilities of all words of a length


class Windows(NamedTuple):
    """What the last k symbols say of the next one, exactly.

    The entropy rate is bracketed as in Cover and Thomas, "Elements of Information Theory", section
    4.5: it is at most the loss of every window, and at least H(X_{k+1} | S, X_1 ... X_k), where S
    is the state before X_1.

    Attributes:
        losses: H(X_{k+1} | X_1 ... X_k) for k = 1, 2, ..., the loss of the best predictor that sees
            the last k symbols. They decrease.
        entropy_rate: the lower bound after the longest window.
    """

    losses: tuple[float, ...]
    entropy_rate: float


class Process(ABC):
    """A stationary process.

    Attributes:
        num_symbols: K; symbols are numbers from 0.
    """

    num_symbols: int

    @abstractmethod
    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> np.ndarray:
        """Symbols [B, T] of independent stretches of the process."""

    @abstractmethod
    def losses(self, symbols_BT: np.ndarray) -> np.ndarray:
        """-log p of each symbol given those before it in its row [B, T]."""

    @property
    @abstractmethod
    def windows(self) -> Windows:
        """The losses of windows."""

    @property
    @abstractmethod
    def state_bits(self) -> float:
        """Bits of a context that follows the state, once the state is known, and so misses nothing.

        Fewer may do. It is infinite where no finite number is known to be enough.
        """


class Machine(Process):
    """A process whose hidden state changes with every symbol that it emits.

    Args:
        joint_SKN: the probability of each symbol and next state, given the state.

    Raises:
        ValueError: these are no probabilities, or there is more than one stationary distribution.
    """

    def __init__(self, joint_SKN: np.ndarray) -> None:
        if (joint_SKN < 0).any() or not np.allclose(joint_SKN.sum((1, 2)), 1, atol=1e-6):
            raise ValueError(
                "data.machine: the probabilities of each state must be at least 0 and add up to 1"
            )
        self.joint_SKN = joint_SKN / joint_SKN.sum((1, 2), keepdims=True)
        self.num_states, self.num_symbols, _ = joint_SKN.shape
        self.stationary_S = _stationary(self.joint_SKN.sum(1))
        # State s owns the interval from s to s + 1, and each of its outcomes a part of it.
        edges_SO = self.joint_SKN.reshape(self.num_states, -1).cumsum(1)
        edges_SO[:, -1] = 1
        self._edges = (edges_SO + np.arange(self.num_states)[:, None]).ravel()

    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> np.ndarray:
        """Independent stretches of the process."""
        symbols_BT = np.empty((num_rows, length), np.int64)
        state_B = rng.choice(self.num_states, num_rows, p=self.stationary_S)
        for t in range(length):
            outcome_B = np.searchsorted(self._edges, state_B + rng.random(num_rows), side="right")
            outcome_B %= self.num_symbols * self.num_states
            symbols_BT[:, t], state_B = np.divmod(outcome_B, self.num_states)
        return symbols_BT

    def losses(self, symbols_BT: np.ndarray) -> np.ndarray:
        """The forward algorithm."""
        losses_BT = np.empty(symbols_BT.shape)
        belief_BS = np.tile(self.stationary_S, (len(symbols_BT), 1))
        for t, symbol_B in enumerate(symbols_BT.T):
            for symbol in np.unique(symbol_B):
                is_read_B = symbol_B == symbol
                belief_BS[is_read_B] = belief_BS[is_read_B] @ self.joint_SKN[:, symbol]
            probability_B = belief_BS.sum(1)
            losses_BT[:, t] = -np.log(probability_B)
            belief_BS /= probability_B[:, None]
        return losses_BT

    @cached_property
    def windows(self) -> Windows:
        """The losses of all windows up to the one that closes the bracket of the entropy rate.

        There are at most `MOST_WINDOWS`, and fewer if there are too many different pasts.
        """
        from_nothing = self._conditional_entropies(self.stationary_S[None], np.ones(1))
        from_state = self._conditional_entropies(np.eye(self.num_states), self.stationary_S)
        losses, lowest = [], 0.0
        for loss, lowest in itertools.islice(
            zip(from_nothing, from_state, strict=False), MOST_WINDOWS + 1
        ):
            losses.append(loss)
            if loss - lowest < CLOSED and len(losses) > 1:
                break
        return Windows(tuple(losses[1:]), lowest)

    @property
    def state_bits(self) -> float:
        """Those that number the states, if a state and a symbol determine the next state."""
        is_unifilar = ((self.joint_SKN > 0).sum(-1) <= 1).all()
        return math.log2(self.num_states) if is_unifilar else math.inf

    def _conditional_entropies(
        self, belief_WS: np.ndarray, probability_W: np.ndarray
    ) -> Iterator[float]:
        """The entropy of symbol 1, 2, ... given those before it and which belief it started from.

        Words that lead to the same belief count as one: their futures are alike.
        """
        joint_SO = self.joint_SKN.reshape(self.num_states, -1)
        most_numbers = max(MOST_NUMBERS, self.num_symbols * joint_SO.size)  # enough for one window
        while len(belief_WS) * joint_SO.shape[1] <= most_numbers:
            joint_WKN = (belief_WS @ joint_SO).reshape(-1, self.num_symbols, self.num_states)
            next_WK = joint_WKN.sum(-1)
            is_possible_WK = next_WK > 0
            next_possible = next_WK[is_possible_WK]
            probability = (probability_W[:, None] * next_WK)[is_possible_WK]
            yield float(-(probability * np.log(next_possible)).sum())
            beliefs = joint_WKN[is_possible_WK] / next_possible[:, None]
            _, first, word = np.unique(
                beliefs.round(11), axis=0, return_index=True, return_inverse=True
            )
            belief_WS, probability_W = beliefs[first], np.bincount(word.ravel(), probability)


def _stationary(transitions_SN: np.ndarray) -> np.ndarray:
    """The distribution over states that a step leaves as it is."""
    num_states = len(transitions_SN)
    equations = np.vstack([transitions_SN.T - np.eye(num_states), np.ones(num_states)])
    if np.linalg.matrix_rank(equations[:-1], tol=1e-9) < num_states - 1:
        raise ValueError(
            "data.machine: has more than one stationary distribution, since some of its states "
            "never reach each other; connect them, or draw another"
        )
    stationary_S = np.linalg.lstsq(equations, np.eye(num_states + 1)[-1], rcond=None)[0].clip(0)
    return np.asarray(stationary_S / stationary_S.sum())


class Copier(Process):
    """Symbols that repeat after a delay, or are drawn anew.

    With K symbols it would be a `Machine` of K^delay states. Given the symbol `delay` places
    before, the others say nothing of the next one, so that all losses follow from one entropy.
    """

    def __init__(self, kinds: int, delay: int, noise: float) -> None:
        self.num_symbols, self._delay, self._noise = kinds, delay, noise
        self._loss_of_copy = -math.log(1 - noise + noise / kinds)
        self._loss_of_other = -math.log(noise / kinds)

    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> np.ndarray:
        """Independent stretches of the process."""
        symbols_BT = rng.integers(self.num_symbols, size=(num_rows, length))
        is_copy_BT = rng.random((num_rows, length)) >= self._noise
        for t in range(self._delay, length):
            oldest_B = symbols_BT[:, t - self._delay]
            symbols_BT[:, t] = np.where(is_copy_BT[:, t], oldest_B, symbols_BT[:, t])
        return symbols_BT

    def losses(self, symbols_BT: np.ndarray) -> np.ndarray:
        """Of a copy, of another symbol, and of those before the first copy."""
        losses_BT = np.full(symbols_BT.shape, math.log(self.num_symbols))
        is_copy = symbols_BT[:, self._delay :] == symbols_BT[:, : -self._delay]
        losses_BT[:, self._delay :] = np.where(is_copy, self._loss_of_copy, self._loss_of_other)
        return losses_BT

    @property
    def windows(self) -> Windows:
        """Windows that are shorter than the delay say nothing, the others all that there is."""
        share = self._noise * (1 - 1 / self.num_symbols)
        entropy_rate = (1 - share) * self._loss_of_copy + share * self._loss_of_other
        shorter = (math.log(self.num_symbols),) * (self._delay - 1)
        return Windows((*shorter, entropy_rate), entropy_rate)

    @property
    def state_bits(self) -> float:
        """Those of the symbols that are still to be repeated, beside the one that is read."""
        return (self._delay - 1) * math.log2(self.num_symbols)
