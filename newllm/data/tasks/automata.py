"""State tracking: the state of a finite automaton, group products among them.

Shape suffixes: B rows of a batch, T time, S states, K symbols.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from newllm.config.faults import no_such_option, raise_faults, too_small, unused
from newllm.data.tasks.task import NOT_SCORED, Rows, Task

SCORED = ("every", "last")


class Automaton(Task):
    """A finite automaton reads symbols drawn uniformly; the answer is its state.

    Args:
        name: of the task.
        transitions: `transitions[state][symbol]` is the next state.
        start: the state before the first symbol.
        scored: `every` scores the state after every symbol, as in "The Illusion of State in
            State-Space Models" (Merrill et al. 2024, arXiv 2404.08819); `last` only the last one,
            as in "Neural Networks and the Chomsky Hierarchy" (Delétang et al. 2023, arXiv
            2207.02098), whose networks read an empty symbol before they answer.
        settings: of `Task`.
    """

    def __init__(
        self,
        name: str,
        transitions: Sequence[Sequence[int]],
        /,
        start: int = 0,
        scored: str = "every",
        **settings: Any,
    ) -> None:
        raise_faults(
            [*no_such_option("data", SCORED, scored=scored), *_table_faults(transitions, start)]
        )
        self.transitions_SK = np.array(transitions, dtype=np.int64)
        self.start, self._scored = start, scored
        num_states, num_symbols = self.transitions_SK.shape
        super().__init__(name, max(num_states, num_symbols), num_states, **settings)

    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> Rows:
        """Uniform symbols and the states that they lead to."""
        symbols_BT = rng.integers(self.transitions_SK.shape[1], size=(num_rows, length))
        answers_BT = self.states(symbols_BT)
        if self._scored == "last":
            answers_BT[:, :-1] = NOT_SCORED
        return Rows(symbols_BT, answers_BT)

    def states(self, symbols_BT: np.ndarray) -> np.ndarray:
        """The state after each symbol [B, T]."""
        states_BT = np.empty_like(symbols_BT)
        state_B = np.full(len(symbols_BT), self.start)
        for t in range(symbols_BT.shape[1]):
            state_B = self.transitions_SK[state_B, symbols_BT[:, t]]
            states_BT[:, t] = state_B
        return states_BT

    def information(self, length: int) -> float:
        """The state before the last symbol; states with the same next states count once.

        With all states in reach, that is log2 S for a group.
        """
        _, class_S = np.unique(self.transitions_SK, axis=0, return_inverse=True)
        reached_N, most = np.array([self.start]), 1
        for _ in range(length - 1):
            reached_N = np.unique(self.transitions_SK[reached_N])
            most = max(most, len(np.unique(class_S[reached_N])))
        return math.log2(most)


def _table_faults(transitions: Any, start: int) -> list[str]:
    rows = transitions if isinstance(transitions, Sequence) else []
    if not rows or any(not isinstance(row, Sequence) or len(row) != len(rows[0]) for row in rows):
        return ["data.transitions: must be a list with a list of next states for each state"]
    states = range(len(rows))
    if not rows[0] or any(state not in states for row in rows for state in row):
        return [f"data.transitions: next states must be from 0 to {states[-1]}"]
    return [] if start in states else [f"data.start={start}: must be from 0 to {states[-1]}"]


class Regular(Automaton):
    """An automaton of one's own, or drawn at random.

    Args:
        transitions: as in `Automaton`. None draws them uniformly, again and again until every state
            can be reached from every other.
        num_states: S of drawn transitions.
        num_symbols: K of drawn transitions.
        automaton_seed: of drawn transitions.
        settings: of `Automaton`.
    """

    def __init__(
        self,
        transitions: Sequence[Sequence[int]] | None = None,
        num_states: int = 8,
        num_symbols: int = 3,
        automaton_seed: int = 1,
        **settings: Any,
    ) -> None:
        drawn: dict[str, Any] = {
            "num_states": num_states,
            "num_symbols": num_symbols,
            "automaton_seed": automaton_seed,
        }
        if transitions is None:
            transitions = drawn_automaton(**drawn).tolist()
        else:
            raise_faults(unused("data", "data.transitions", Regular, **drawn))
        super().__init__("regular", transitions, **settings)


MAX_DRAWS = 10_000


def drawn_automaton(num_states: int, num_symbols: int, automaton_seed: int) -> np.ndarray:
    """Random transitions [S, K] in which every state can be reached from every other.

    Raises:
        ValueError: a number is too small, or none of many drawn automata is connected.
    """
    faults = too_small("data", 2, num_states=num_states) + too_small(
        "data", 1, num_symbols=num_symbols
    )
    raise_faults([*faults, *too_small("data", 0, automaton_seed=automaton_seed)])
    rng = np.random.default_rng((num_states, num_symbols, automaton_seed))
    if num_symbols == 1:  # connected only as a cycle, which is rarely drawn
        order_S = rng.permutation(num_states)
        cycle_SK = np.empty((num_states, 1), np.int64)
        cycle_SK[order_S, 0] = np.roll(order_S, -1)
        return cycle_SK
    for _ in range(MAX_DRAWS):
        transitions_SK = rng.integers(num_states, size=(num_states, num_symbols))
        if _is_connected(transitions_SK):
            return transitions_SK
    raise ValueError(
        f"data.num_states={num_states}: too many for data.num_symbols={num_symbols}; of "
        f"{MAX_DRAWS:,} drawn automata, none is connected"
    )


def _is_connected(transitions_SK: np.ndarray) -> bool:
    """Whether every state can be reached from every other."""
    num_states = len(transitions_SK)
    if len(np.unique(transitions_SK)) < num_states:  # the most frequent reason, and fast
        return False
    reached_SS = np.eye(num_states, dtype=bool)
    for _ in range(num_states):
        reached_SS |= reached_SS[transitions_SK].any(axis=1)
    return bool(reached_SS.all())


class Parity(Automaton):
    """Whether the number of ones is odd (Delétang et al. 2023: "Parity Check")."""

    def __init__(self, **settings: Any) -> None:
        super().__init__("parity", [[0, 1], [1, 0]], **settings)


class CycleNavigation(Automaton):
    """The place on a cycle of five after steps of 0, +1 and -1 (Delétang et al. 2023)."""

    def __init__(self, **settings: Any) -> None:
        steps = (0, 1, -1)
        table = [[(place + step) % 5 for step in steps] for place in range(5)]
        super().__init__("cycle_navigation", table, **settings)


GROUPS = ("z60", "s3", "a5", "s5")


class Group(Automaton):
    """The product of the elements so far: the word problem of a group.

    As in Merrill et al. 2024 (arXiv 2404.08819), every element of the group is a symbol.

    Args:
        group: `z60` (cyclic), `s3`, `a5` (the smallest that is not solvable) or `s5`.
        settings: of `Automaton`.
    """

    def __init__(self, group: str = "s3", **settings: Any) -> None:
        raise_faults(no_such_option("data", GROUPS, group=group))
        super().__init__(f"group_{group}", multiplication(group), **settings)


def multiplication(group: str) -> list[list[int]]:
    """The table of a group; element 0 is the identity.

    An element of s3, a5 and s5 is a permutation, the even ones for a5, in lexicographic order;
    `table[p][q]` first permutes by q, then by p.
    """
    kind, size = group[0], int(group[1:])
    if kind == "z":
        return [[(a + b) % size for b in range(size)] for a in range(size)]
    elements = [
        permutation
        for permutation in itertools.permutations(range(size))
        if kind == "s" or _is_even(permutation)
    ]
    index = {permutation: number for number, permutation in enumerate(elements)}
    return [[index[tuple(p[i] for i in q)] for q in elements] for p in elements]


def _is_even(permutation: Sequence[int]) -> bool:
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0
