"""What it is worth to remember, for sentences of a grammar: exact losses of short memories.

All values are expectations over all sentences of the grammar, in nats.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

from newllm.data.sources.grammar import Grammar, State, Step

BEGINNING = "<BOS>"
"""The token before the first word of a sentence."""

Window = tuple[str, ...]
Mixture = Mapping[State, float]  # states that a sentence may be in, with their probabilities


def window_losses(grammar: Grammar, longest: int) -> list[float]:
    """The losses of the best predictors that see the last 1, 2, ..., `longest` tokens alone.

    They are H(token | the tokens in the window), per token, the end counted. A window that reaches
    beyond the first word begins with `BEGINNING`.
    """
    joint: dict[Window, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for mass, window, word, _ in _walk(grammar, longest):
        joint[window][word] += mass
    return [_window_loss(joint, size) for size in range(1, longest + 1)]


def context_information(grammar: Grammar) -> float:
    """What the words before a token tell of those after it beyond the token, a mean over tokens.

    That is I(past; future | present). As for a stationary process, it is the sum over all k of the
    loss of the best window of k tokens above the loss of the grammar itself.
    """
    reached: dict[str, dict[State, float]] = defaultdict(lambda: defaultdict(float))
    num_tokens = 0.0
    for mass, _, word, step in _walk(grammar, 1):
        num_tokens += mass
        if step.state:
            reached[word][step.state] += mass
    known: dict[frozenset[tuple[State, float]], float] = {}
    information = 0.0
    for of_word in reached.values():
        mass, mixture = _normalised(of_word)
        entropies = (share * state.entropy for state, share in mixture.items())
        information += mass * (_entropy(mixture, known) - math.fsum(entropies))
    return information / num_tokens


def _walk(grammar: Grammar, longest: int) -> Iterator[tuple[float, Window, str, Step]]:
    """All tokens that a sentence may have next, each with its probability and the last tokens."""
    reached: dict[tuple[State, Window], float] = {(grammar.initial, (BEGINNING,)): 1.0}
    while reached:
        following: dict[tuple[State, Window], float] = defaultdict(float)
        for (state, window), mass in reached.items():
            for word, step in state.steps.items():
                yield mass * step.probability, window, word, step
                if step.state:
                    longer = (*window, word)[-longest:]
                    following[step.state, longer] += mass * step.probability
        reached = following


def _window_loss(joint: Mapping[Window, Mapping[str, float]], size: int) -> float:
    """The entropy of a token given the last tokens of a longer window."""
    shorter: dict[Window, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for window, following in joint.items():
        for word, mass in following.items():
            shorter[window[-size:]][word] += mass
    num_tokens = loss = 0.0
    for following in shorter.values():
        total = math.fsum(following.values())
        num_tokens += total
        loss -= math.fsum(mass * math.log(mass / total) for mass in following.values())
    return loss / num_tokens


def _entropy(mixture: Mixture, known: dict[frozenset[tuple[State, float]], float]) -> float:
    """The entropy of the rest of a sentence that is in one of several states."""
    key = frozenset((state, round(share, 10)) for state, share in mixture.items())
    if key not in known:
        following: dict[str, dict[State, float]] = defaultdict(lambda: defaultdict(float))
        probability: dict[str, float] = defaultdict(float)
        for state, share in mixture.items():
            for word, step in state.steps.items():
                probability[word] += share * step.probability
                if step.state:
                    following[word][step.state] += share * step.probability
        rest = (
            mass * _entropy(after, known) for mass, after in map(_normalised, following.values())
        )
        known[key] = math.fsum(rest) - math.fsum(p * math.log(p) for p in probability.values())
    return known[key]


def _normalised(masses: Mixture) -> tuple[float, Mixture]:
    """The sum of some masses, and their shares of it."""
    total = math.fsum(masses.values())
    return total, {state: mass / total for state, mass in masses.items()}
