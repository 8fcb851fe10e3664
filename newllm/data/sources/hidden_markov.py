"""Hidden-Markov sources, whose losses are known exactly.

Shape suffixes: B rows of a batch, T time, S states before a symbol, N states after it, K symbols,
W words (distinct pasts). All logarithms are natural; losses are in nats per symbol.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from newllm.data.tasks.automata import drawn_automaton
from newllm.data.tasks.task import FIRST_TOKEN, NOT_SCORED, Rows, Task, too_small

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


class Machine:
    """A stationary process whose hidden state changes with every symbol that it emits.

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
        """Symbols [B, T] of independent stretches of the process."""
        symbols_BT = np.empty((num_rows, length), np.int64)
        state_B = rng.choice(self.num_states, num_rows, p=self.stationary_S)
        for t in range(length):
            outcome_B = np.searchsorted(self._edges, state_B + rng.random(num_rows), side="right")
            outcome_B %= self.num_symbols * self.num_states
            symbols_BT[:, t], state_B = np.divmod(outcome_B, self.num_states)
        return symbols_BT

    def losses(self, symbols_BT: np.ndarray) -> np.ndarray:
        """-log p of each symbol given those before it [B, T]: the forward algorithm."""
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
            "data.machine: some states never reach each other; give or draw one in which all do"
        )
    stationary_S = np.linalg.lstsq(equations, np.eye(num_states + 1)[-1], rcond=None)[0].clip(0)
    return np.asarray(stationary_S / stationary_S.sum())


class Copier:
    """A stationary process of symbols that repeat after a delay, or are drawn anew.

    With K symbols it would be a `Machine` of K^delay states. Given the symbol `delay` places
    before, the others say nothing of the next one, so that all losses follow from one entropy.
    """

    def __init__(self, kinds: int, delay: int, noise: float) -> None:
        self.num_symbols, self._delay, self._noise = kinds, delay, noise
        self._loss_of_copy = -math.log(1 - noise + noise / kinds)
        self._loss_of_other = -math.log(noise / kinds)

    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> np.ndarray:
        """Symbols [B, T] of independent stretches of the process."""
        symbols_BT = rng.integers(self.num_symbols, size=(num_rows, length))
        is_copy_BT = rng.random((num_rows, length)) >= self._noise
        for t in range(self._delay, length):
            oldest_B = symbols_BT[:, t - self._delay]
            symbols_BT[:, t] = np.where(is_copy_BT[:, t], oldest_B, symbols_BT[:, t])
        return symbols_BT

    def losses(self, symbols_BT: np.ndarray) -> np.ndarray:
        """-log p of each symbol given those before it [B, T]."""
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


class MarkovSource(Task):
    """Symbols of a stationary process, each scored given those before it.

    Every row is a stretch of its own, so that its first symbols have a past that no model can
    know. A length counts scored symbols.

    Args:
        name: of the source.
        process: draws symbols, and knows their losses.
        unscored: symbols at the beginning of a row that are not scored, from 1.
        settings: of `Task`.
    """

    def __init__(
        self, name: str, process: Machine | Copier, /, unscored: int = 1, **settings: Any
    ) -> None:
        if faults := too_small(1, unscored=unscored):
            raise ValueError("\n".join(faults))
        self.process, self.unscored = process, unscored
        self._oracle_losses: dict[str, float] = {}
        super().__init__(name, process.num_symbols, process.num_symbols, **settings)

    def num_positions(self, length: int) -> int:
        """All symbols but the last, which is only predicted."""
        return self.unscored + length - 1

    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> Rows:
        """The answer to each symbol is the next one."""
        symbols_BT = self.process.draw(rng, num_rows, self.unscored + length)
        answers_BT = symbols_BT[:, 1:].copy()
        answers_BT[:, : self.unscored - 1] = NOT_SCORED
        return Rows(symbols_BT[:, :-1], answers_BT)

    def oracle_loss(self, split: str) -> float:
        """The loss of a model that knows the process, but only sees what has been read."""
        if split not in self._oracle_losses:
            losses = []
            for batch in self.evaluation[split]:
                tokens_BT = np.concatenate([batch.tokens_BT, batch.targets_BT[:, -1:]], axis=1)
                losses_BT = self.process.losses(tokens_BT - FIRST_TOKEN)
                losses.append(losses_BT[:, self.unscored :].ravel())
            self._oracle_losses[split] = float(np.concatenate(losses).mean())
        return self._oracle_losses[split]

    @property
    def entropy_floor(self) -> float:
        """The expectation of `oracle_loss`, up to the bracket of the entropy rate."""
        losses, entropy_rate = self.process.windows
        known = losses[self.unscored - 1 :][: self.longest]
        return (sum(known) + (self.longest - len(known)) * entropy_rate) / self.longest

    def reference_losses(self, split: str) -> dict[str, float]:
        """Guessing, the best windows of 1, 2, ... symbols, and the entropy rate from below."""
        losses, entropy_rate = self.process.windows
        windows = {f"window_{k}": loss for k, loss in enumerate(losses, start=1)}
        return super().reference_losses(split) | windows | {"entropy_rate": entropy_rate}

    def information(self, length: int) -> float:
        """The bits that the past holds about the next symbols beyond the one that is read.

        That is I(past; X_2 ... X_{length + 1} | X_1), up to the bracket of the entropy rate.
        """
        losses, entropy_rate = self.process.windows
        return sum(loss - entropy_rate for loss in losses[:length]) / math.log(2)


class HiddenMarkov(MarkovSource):
    """A machine of one's own, or drawn at random.

    Args:
        machine: `machine[state][symbol][next state]`, the probability of a symbol and the next
            state, given the state. None draws it.
        num_states: S of a drawn machine.
        num_symbols: K of a drawn machine.
        concentration: each state's probabilities are drawn from a symmetric Dirichlet distribution
            over all symbols and next states; the lower its concentration, the fewer of them matter.
        unifilar: draw each state's probabilities over symbols alone, and the next state of each
            state and symbol as in `Regular`. Who knows a state and the symbols after it then knows
            all later states, and no context needs more than log2 S bits to keep up with them.
        machine_seed: of a drawn machine.
        settings: of `Task`.
    """

    def __init__(
        self,
        machine: Sequence[Sequence[Sequence[float]]] | None = None,
        num_states: int = 4,
        num_symbols: int = 4,
        concentration: float = 0.1,
        unifilar: bool = False,
        machine_seed: int = 1,
        **settings: Any,
    ) -> None:
        if machine is None:
            joint_SKN = drawn_machine(
                num_states, num_symbols, concentration, unifilar, machine_seed
            )
        else:
            joint_SKN = _table(machine)
        super().__init__("hidden_markov", Machine(joint_SKN), **settings)


def _table(machine: Sequence[Sequence[Sequence[float]]]) -> np.ndarray:
    try:
        joint_SKN = np.array(machine, dtype=float)
    except (TypeError, ValueError):
        joint_SKN = np.empty(0)
    shape = joint_SKN.shape
    if joint_SKN.ndim != 3 or shape[0] != shape[2] or shape[1] < 2:
        raise ValueError(
            "data.machine: must be a list with, for each state, a list with, for each of at least "
            "two symbols, a list of the probabilities of all next states"
        )
    return joint_SKN


def drawn_machine(
    num_states: int, num_symbols: int, concentration: float, unifilar: bool, seed: int
) -> np.ndarray:
    """Random probabilities [S, K, N] of symbols and next states.

    Raises:
        ValueError: a setting is out of range, or `drawn_automaton` finds no connected automaton.
    """
    faults = too_small(1, num_states=num_states) + too_small(2, num_symbols=num_symbols)
    faults += too_small(0, machine_seed=seed)
    if not 0 < concentration < math.inf:
        faults.append(f"data.concentration={concentration}: must be above 0 and finite")
    if faults:
        raise ValueError("\n".join(faults))
    rng = np.random.default_rng((num_states, num_symbols, seed))
    shape = num_states, num_symbols, num_states
    if not unifilar:
        outcomes = num_symbols * num_states
        return rng.dirichlet(np.full(outcomes, concentration), num_states).reshape(shape)
    joint_SKN = np.zeros(shape)
    next_SK1 = drawn_automaton(num_states, num_symbols, seed)[:, :, None]
    symbols_SK1 = rng.dirichlet(np.full(num_symbols, concentration), num_states)[:, :, None]
    np.put_along_axis(joint_SKN, next_SK1, symbols_SK1, axis=2)
    return joint_SKN


class DelayedCopy(MarkovSource):
    """Each symbol repeats the one `delay` places before it, or is drawn anew.

    Beside the symbol that is read, `delay - 1` others are still to be repeated. They hold
    (delay - 1) log2 `kinds` bits, and the less of them is of use, the more noise there is.

    Args:
        kinds: kinds of symbols.
        delay: from a symbol to its copy.
        noise: probability that a symbol is drawn uniformly instead.
        settings: of `Task`.
    """

    def __init__(self, kinds: int = 8, delay: int = 2, noise: float = 0.1, **settings: Any) -> None:
        faults = too_small(2, kinds=kinds) + too_small(1, delay=delay)
        if not 0 < noise <= 1:
            faults.append(f"data.noise={noise}: must be above 0 and at most 1")
        if faults:
            raise ValueError("\n".join(faults))
        super().__init__("delayed_copy", Copier(kinds, delay, noise), **settings)
