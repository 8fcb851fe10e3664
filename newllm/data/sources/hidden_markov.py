"""Sources of symbols that are only predictable up to chance, and whose losses are known exactly.

Shape suffixes: B rows of a batch, T time, S states before a symbol, N states after it, K symbols.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from newllm.config.faults import raise_faults, too_small, unused
from newllm.data.sources.processes import MOST_WINDOWS, Copier, Machine, Process
from newllm.data.tasks.automata import drawn_automaton
from newllm.data.tasks.task import FIRST_TOKEN, NOT_SCORED, Rows, Task


class ProcessSource(Task):
    """Symbols of a stationary process, each scored given those before it.

    Every row is a stretch of its own, so that its first symbols have a past that no model can
    know. A length counts scored symbols.

    Args:
        name: of the source.
        process: draws symbols, and knows their losses.
        unscored: symbols at the beginning of a row that are not scored, from 1.
        settings: of `Task`.
    """

    def __init__(self, name: str, process: Process, /, unscored: int = 1, **settings: Any) -> None:
        raise_faults(too_small("data", 1, unscored=unscored))
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

    def card(self) -> dict[str, str]:
        """What is known of the context that a model needs."""
        bits = self.process.state_bits
        enough = (
            f"{bits:.2f} follow its states" if math.isfinite(bits) else "no finite number is known"
        )
        return super().card() | {
            "context": f"{self.information(MOST_WINDOWS):.2f} bits at least; {enough}"
        }

    def information(self, length: int) -> float:
        """The bits that the past holds about the next symbols beyond the one that is read.

        That is I(past; X_2 ... X_{length + 1} | X_1), up to the bracket of the entropy rate.
        """
        losses, entropy_rate = self.process.windows
        return sum(loss - entropy_rate for loss in losses[:length]) / math.log(2)


class HiddenMarkov(ProcessSource):
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
        drawn: dict[str, Any] = {
            "num_states": num_states,
            "num_symbols": num_symbols,
            "concentration": concentration,
            "unifilar": unifilar,
            "machine_seed": machine_seed,
        }
        if machine is None:
            joint_SKN = drawn_machine(**drawn)
        else:
            raise_faults(unused("data", "data.machine", HiddenMarkov, **drawn))
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
    num_states: int, num_symbols: int, concentration: float, unifilar: bool, machine_seed: int
) -> np.ndarray:
    """Random probabilities [S, K, N] of symbols and next states.

    Raises:
        ValueError: a setting is out of range, or `drawn_automaton` finds no connected automaton.
    """
    faults = too_small("data", 1, num_states=num_states) + too_small(
        "data", 2, num_symbols=num_symbols
    )
    faults += too_small("data", 0, machine_seed=machine_seed)
    if not 0 < concentration < math.inf:
        faults.append(f"data.concentration={concentration}: must be above 0 and finite")
    raise_faults(faults)
    rng = np.random.default_rng((num_states, num_symbols, machine_seed))
    shape = num_states, num_symbols, num_states
    if not unifilar:
        outcomes = num_symbols * num_states
        return rng.dirichlet(np.full(outcomes, concentration), num_states).reshape(shape)
    joint_SKN = np.zeros(shape)
    next_SK1 = drawn_automaton(num_states, num_symbols, machine_seed)[:, :, None]
    symbols_SK1 = rng.dirichlet(np.full(num_symbols, concentration), num_states)[:, :, None]
    np.put_along_axis(joint_SKN, next_SK1, symbols_SK1, axis=2)
    return joint_SKN


class DelayedCopy(ProcessSource):
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
        faults = too_small("data", 2, kinds=kinds) + too_small("data", 1, delay=delay)
        if not 0 < noise <= 1:
            faults.append(f"data.noise={noise}: must be above 0 and at most 1")
        raise_faults(faults)
        super().__init__("delayed_copy", Copier(kinds, delay, noise), **settings)
