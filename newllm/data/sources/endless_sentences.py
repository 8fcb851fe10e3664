"""Sentences of a small grammar, one after the other, as a process whose losses are known exactly.

Shape suffixes: S states before a word, N states after it, K words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from newllm.data.sources.grammar import Grammar, State
from newllm.data.sources.hidden_markov import ProcessSource
from newllm.data.sources.processes import Machine

MOST_STATES = 200


class EndlessSentences(ProcessSource):
    """Sentences of a grammar without end, each followed by the word `<EOS>`.

    A row begins anywhere in a sentence, so that the process is stationary and the losses of its
    windows and its floor are those of any other (`newllm.studies.capacity.floor`).

    Args:
        rules: of the grammar, as in `Grammar`.
        start: the symbol that stands for a sentence.
        settings: of `ProcessSource`.

    Raises:
        ValueError: a fault of the rules, or a grammar of more than `MOST_STATES` states.
    """

    def __init__(
        self,
        rules: Mapping[str, Sequence[str] | Mapping[str, float]],
        start: str = "sentence",
        **settings: Any,
    ) -> None:
        try:
            self.words, machine = machine_of(Grammar(rules, start))
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"data.rules: {error}") from error
        super().__init__("grammar", machine, **settings)


def machine_of(grammar: Grammar) -> tuple[list[str], Machine]:
    """The words of a grammar in alphabetical order, and the machine that emits its sentences."""
    states: dict[State, int] = {grammar.initial: 0}
    waiting = [grammar.initial]
    while waiting:
        for step in waiting.pop().steps.values():
            if step.state and step.state not in states:
                states[step.state] = len(states)
                waiting.append(step.state)
        if len(states) > MOST_STATES:
            raise ValueError(f"the grammar has more than {MOST_STATES} states; make it smaller")
    words = sorted({word for state in states for word in state.steps})
    joint_SKN = np.zeros((len(states), len(words), len(states)))
    for state, number in states.items():
        for word, step in state.steps.items():
            after = states[step.state or grammar.initial]
            joint_SKN[number, words.index(word), after] += step.probability
    return words, Machine(joint_SKN)
