"""State tracking: the state of a finite automaton, group products among them.

Shape suffixes: B rows of a batch, T time, S states, K symbols.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from newllm.data.tasks.task import NOT_SCORED, Rows, Task

SCORED = ("every", "last")


class Regular(Task):
    """A finite automaton reads symbols drawn uniformly; the answer is its state.

    Args:
        transitions: `transitions[state][symbol]` is the next state. Given as numbers, they are
            used as they are; None draws them from `automaton_seed`, uniformly, again and again
            until every state can be reached from every other.
        num_states: S of drawn transitions.
        num_symbols: K of drawn transitions.
        automaton_seed: of drawn transitions.
        start: the state before the first symbol.
        scored: `every` scores the state after every symbol, as in "The Illusion of State in
            State-Space Models" (Merrill et al. 2024, arXiv 2404.08819); `last` only the last one,
            as in "Neural Networks and the Chomsky Hierarchy" (Delétang et al. 2023, arXiv
            2207.02098), whose networks read an empty symbol before they answer.
        name: of the task.
        settings: of `Task`.
    """

    def __init__(
        self,
        transitions: Sequence[Sequence[int]] | None = None,
        num_states: int = 8,
        num_symbols: int = 3,
        automaton_seed: int = 1,
        start: int = 0,
        scored: str = "every",
        name: str = "regular",
        **settings: Any,
    ) -> None:
        if scored not in SCORED:
            raise ValueError(f"data.scored={scored}: choose {' or '.join(SCORED)}")
        if transitions is None:
            transitions = drawn_automaton(num_states, num_symbols, automaton_seed).tolist()
        if fault := _table_fault(transitions, start):
            raise ValueError(fault)
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
        """log2 S: which of the states it is."""
        return math.log2(len(self.transitions_SK))


def _table_fault(transitions: Any, start: int) -> str | None:
    rows = [row for row in transitions if isinstance(row, Sequence)]
    if not rows or len(rows) != len(transitions) or len({len(row) for row in rows}) != 1:
        return "data.transitions: must be a list of a row of next states for each state"
    states = range(len(rows))
    if start not in states or not rows[0] or any(to not in states for row in rows for to in row):
        return f"data.transitions: its states, and data.start={start}, must be from 0 to {len(rows) - 1}"
    return None


def drawn_automaton(num_states: int, num_symbols: int, seed: int) -> np.ndarray:
    """Random transitions [S, K] in which every state is reached from every other.

    Raises:
        ValueError: fewer than two states or no symbol.
    """
    if num_states < 2 or num_symbols < 1:
        raise ValueError("data.num_states must be at least 2 and data.num_symbols at least 1")
    rng = np.random.default_rng((num_states, num_symbols, seed))
    if num_symbols == 1:  # connected only as a cycle, which is rarely drawn
        order_S = rng.permutation(num_states)
        cycle_SK = np.empty((num_states, 1), np.int64)
        cycle_SK[order_S, 0] = np.roll(order_S, -1)
        return cycle_SK
    while True:
        transitions_SK = rng.integers(num_states, size=(num_states, num_symbols))
        if _is_connected(transitions_SK):
            return transitions_SK


def _is_connected(transitions_SK: np.ndarray) -> bool:
    """Whether every state is reached from every other."""
    num_states = len(transitions_SK)
    edges_SS = np.eye(num_states, dtype=bool)
    edges_SS[np.arange(num_states)[:, None], transitions_SK] = True
    return bool(np.linalg.matrix_power(edges_SS.astype(object), num_states).all())


class Parity(Regular):
    """Whether the number of ones is odd (Delétang et al. 2023: "Parity Check")."""

    def __init__(self, **settings: Any) -> None:
        super().__init__([[0, 1], [1, 0]], name="parity", **settings)


class CycleNavigation(Regular):
    """The place on a cycle of five after steps of 0, +1 and -1 (Delétang et al. 2023)."""

    def __init__(self, **settings: Any) -> None:
        steps = (0, 1, -1)
        table = [[(place + step) % 5 for step in steps] for place in range(5)]
        super().__init__(table, name="cycle_navigation", **settings)


GROUPS = ("z60", "s3", "a5", "s5")


class Group(Regular):
    """The product of the elements so far: the word problem of a group.

    As in Merrill et al. 2024 (arXiv 2404.08819), every element of the group is a symbol.

    Args:
        group: `z60` (cyclic), `s3`, `a5` (the smallest that is not solvable) or `s5`.
        settings: of `Regular`.
    """

    def __init__(self, group: str = "s3", **settings: Any) -> None:
        if group not in GROUPS:
            raise ValueError(f"data.group={group}: choose {', '.join(GROUPS)}")
        super().__init__(multiplication(group), name=f"group_{group}", **settings)


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
