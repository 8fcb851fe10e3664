"""A non-recursive probabilistic grammar whose probabilities are known exactly.

Rules are written as in BNF: ``{"sentence": ["<who> sings"], "who": ["a bird", "a child"]}``.
A list is a uniform choice, a table ``{alternative: weight}`` a weighted one. An alternative may be
empty.

A *belief* is the posterior, given a prefix, over the stacks of symbols that are yet to be expanded,
one stack for each derivation that the prefix allows. Reading a word turns a belief into the next
one. No rule is recursive, so there are finitely many beliefs. They are the states of a
deterministic acyclic weighted automaton (the subset construction of Mohri, "Finite-State
Transducers in Language and Speech Processing", 1997), which is built lazily. Probabilities are
fractions, so that equal beliefs compare equal. All logarithms are natural.
"""

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import accumulate
from typing import NamedTuple

END = "<EOS>"
"""The token that ends a sentence, as it appears in distributions over the next token."""

Rules = Mapping[str, Sequence[str] | Mapping[str, float]]
Stack = tuple[str, ...]  # the items still to be expanded, the next one first


class Grammar:
    """A probability distribution over sentences.

    Args:
        rules: for each symbol its alternatives, a list (uniform) or a table of positive weights.
        start: the symbol that stands for a whole sentence.

    Attributes:
        initial: the state of the automaton before the first word.

    Raises:
        ValueError: a symbol without a rule, a rule that is no list or table of texts or has no
            alternatives, a weight that is not positive and finite, or a symbol that contains
            itself.
    """

    def __init__(self, rules: Rules, start: str) -> None:
        self.start = start
        self._alternatives = {symbol: _normalised(symbol, rules[symbol]) for symbol in rules}
        self._check_symbols()
        self._cumulative = {
            symbol: list(accumulate(float(probability) for probability, _ in alternatives))
            for symbol, alternatives in self._alternatives.items()
        }
        self._first_words: dict[Stack, dict[tuple[str, Stack], Fraction]] = {}
        self._states: dict[frozenset[tuple[Stack, Fraction]], State] = {}
        self.initial = self._state({(_symbol(start),): Fraction(1)})

    def sample(self, rng: random.Random, symbol: str | None = None) -> list[str]:
        """The words of one sentence, or of one expansion of ``symbol``."""
        words: list[str] = []
        stack = [_symbol(symbol or self.start)]
        while stack:
            item = stack.pop()
            if not _is_symbol(item):
                words.append(item)
                continue
            alternatives = self._alternatives[_name(item)]
            weights = self._cumulative[_name(item)]
            _, items = rng.choices(alternatives, cum_weights=weights)[0]
            stack.extend(reversed(items))
        return words

    def token_log_probabilities(self, words: Sequence[str]) -> list[float]:
        """Log-probability of each word given those before it and, last, of the sentence's end.

        From the first impossible word on all are minus infinity.
        """
        log_probabilities = []
        state: State | None = self.initial
        for word in [*words, END]:
            step = state.steps.get(word) if state else None
            log_probabilities.append(step.log_probability if step else -math.inf)
            state = step.state if step else None
        return log_probabilities

    def log_probability(self, words: Sequence[str]) -> float:
        """Log-probability of a whole sentence, its end included, over all its derivations."""
        return math.fsum(self.token_log_probabilities(words))

    def next_token_distribution(self, prefix: Sequence[str]) -> dict[str, float]:
        """Probability of each token, `END` among them, that can follow ``prefix``.

        Raises:
            ValueError: no sentence starts with ``prefix``.
        """
        state = self.initial
        for word in prefix:
            step = state.steps.get(word)
            if step is None or step.state is None:
                raise ValueError(f"no sentence of the grammar starts with {' '.join(prefix)!r}")
            state = step.state
        return {word: step.probability for word, step in state.steps.items()}

    def entropy(self) -> float:
        """Entropy of a sentence in nats."""
        return self.initial.entropy

    def entropy_per_token(self) -> float:
        """Entropy of a sentence over its expected number of tokens, the end counted: nats."""
        return self.entropy() / self.initial.expected_tokens

    def estimate(self, sentences: Iterable[Sequence[str]]) -> "Grammar":
        """A grammar of the same rules whose probabilities are estimated from sentences.

        Each probability is the posterior mean under a flat prior,
        (count + 1) / (total + alternatives). The derivations of an ambiguous sentence are weighted
        by their posterior under uniform probabilities.

        Raises:
            ValueError: a sentence that the rules do not make.
        """
        rules = {
            symbol: {" ".join(items): 1.0 for _, items in alternatives}
            for symbol, alternatives in self._alternatives.items()
        }
        uniform = Grammar(rules, self.start)
        for words in sentences:
            uniform._count(words, rules)
        # Rounding recovers the whole numbers and simple fractions that the sums stand for.
        rounded = {
            symbol: {text: round(count, 6) for text, count in counts.items()}
            for symbol, counts in rules.items()
        }
        return Grammar(rounded, self.start)

    def _count(self, words: Sequence[str], counts: dict[str, dict[str, float]]) -> None:
        """Add to the counts how often each alternative is expected in a sentence's derivation."""
        inside = _Inside(self, words)
        start: Stack = (_symbol(self.start),)
        if not inside.probability(start, 0):
            raise ValueError(f"the grammar does not make the sentence {' '.join(words)!r}")
        waiting = [(start, 0, 1.0)]
        while waiting:
            stack, position, weight = waiting.pop()
            while stack and not _is_symbol(stack[0]):
                stack, position = stack[1:], position + 1
            if not stack:
                continue
            whole = inside.probability(stack, position)
            for items, joint in inside.expansions(stack, position):
                share = weight * joint / whole
                counts[_name(stack[0])][" ".join(items)] += share
                waiting.append((items + stack[1:], position, share))

    def _check_symbols(self) -> None:
        used = {
            symbol: {_name(item) for _, items in alternatives for item in items if _is_symbol(item)}
            for symbol, alternatives in self._alternatives.items()
        }
        for user, names in {"the start": {self.start}, **used}.items():
            for name in sorted(names - used.keys()):
                raise ValueError(f"grammar: {user} uses <{name}>, which has no rule")
        try:
            TopologicalSorter(used).prepare()
        except CycleError as error:
            cycle = " -> ".join(f"<{name}>" for name in error.args[1])
            raise ValueError(f"grammar: a rule must not contain itself: {cycle}") from None

    def _expand(self, stack: Stack) -> dict[tuple[str, Stack], Fraction]:
        """Probability of each first word of ``stack`` together with the stack it leaves."""
        if stack not in self._first_words:
            first_words: dict[tuple[str, Stack], Fraction] = defaultdict(Fraction)
            if not stack:
                first_words[END, ()] = Fraction(1)
            elif not _is_symbol(stack[0]):
                first_words[stack[0], stack[1:]] = Fraction(1)
            else:
                for probability, items in self._alternatives[_name(stack[0])]:
                    for step, conditional in self._expand(items + stack[1:]).items():
                        first_words[step] += probability * conditional
            self._first_words[stack] = first_words
        return self._first_words[stack]

    def _state(self, belief: Mapping[Stack, Fraction]) -> "State":
        key = frozenset(belief.items())
        if key not in self._states:
            self._states[key] = State(self, belief)
        return self._states[key]


class _Inside:
    """Probabilities that a stack of symbols makes the rest of a sentence."""

    def __init__(self, grammar: Grammar, words: Sequence[str]) -> None:
        self._grammar, self._words = grammar, (*words, END)
        self._expansions: dict[tuple[Stack, int], list[tuple[Stack, float]]] = {}

    def expansions(self, stack: Stack, position: int) -> list[tuple[Stack, float]]:
        """The possible alternatives of the first symbol, each with its joint probability."""
        key = stack, position
        if key not in self._expansions:
            word, rest = self._words[position], stack[1:]
            self._expansions[key] = [
                (items, weight * inside)
                for weight, items in self._grammar._alternatives[_name(stack[0])]
                if not items or items[0] == word or _is_symbol(items[0])
                if (inside := self.probability(items + rest, position))
            ]
        return self._expansions[key]

    def probability(self, stack: Stack, position: int) -> float:
        """That `stack` makes exactly the words from `position` on."""
        while stack and not _is_symbol(stack[0]):
            if stack[0] != self._words[position]:
                return 0.0
            stack, position = stack[1:], position + 1
        if not stack:
            return float(self._words[position] == END)
        return sum(joint for _, joint in self.expansions(stack, position))


class Step(NamedTuple):
    probability: float
    log_probability: float
    state: "State | None"  # None after the end


class State:
    """A belief about what is left of the sentence: one state of the automaton."""

    def __init__(self, grammar: Grammar, belief: Mapping[Stack, Fraction]) -> None:
        self._grammar = grammar
        self._belief = belief

    @cached_property
    def steps(self) -> dict[str, Step]:
        joint: dict[str, dict[Stack, Fraction]] = defaultdict(lambda: defaultdict(Fraction))
        for stack, weight in self._belief.items():
            for (word, rest), probability in self._grammar._expand(stack).items():
                joint[word][rest] += weight * probability
        steps = {}
        for word, rests in joint.items():
            total = sum(rests.values(), Fraction(0))
            posterior = {rest: weight / total for rest, weight in rests.items()}
            following = None if word == END else self._grammar._state(posterior)
            # The logarithms of two integers survive where the quotient as a float is zero.
            log_probability = math.log(total.numerator) - math.log(total.denominator)
            steps[word] = Step(float(total), log_probability, following)
        return steps

    @cached_property
    def entropy(self) -> float:
        return math.fsum(
            step.probability * ((step.state.entropy if step.state else 0.0) - step.log_probability)
            for step in self.steps.values()
        )

    @cached_property
    def expected_tokens(self) -> float:
        return math.fsum(
            step.probability * (1.0 + (step.state.expected_tokens if step.state else 0.0))
            for step in self.steps.values()
        )


def _normalised(
    symbol: str, rule: Sequence[str] | Mapping[str, float]
) -> list[tuple[Fraction, Stack]]:
    if isinstance(rule, str) or not isinstance(rule, Sequence | Mapping):
        raise ValueError(
            f"grammar: <{symbol}> is {rule!r}, but must be a list of alternatives or a table of "
            "their weights"
        )
    weighted = rule.items() if isinstance(rule, Mapping) else [(text, 1) for text in rule]
    if wrong := [text for text, _ in weighted if not isinstance(text, str)]:
        raise ValueError(f"grammar: <{symbol}>: alternative {wrong[0]!r} must be text")
    if not weighted:
        raise ValueError(f"grammar: <{symbol}> has no alternatives")
    for text, weight in weighted:
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"grammar: <{symbol}>: weight {weight} of {text!r} must be positive")
    total = sum(Fraction(weight) for _, weight in weighted)
    return [(Fraction(weight) / total, tuple(text.split())) for text, weight in weighted]


def _is_symbol(item: str) -> bool:
    return item.startswith("<") and item.endswith(">")


def _symbol(name: str) -> str:
    return f"<{name}>"


def _name(symbol: str) -> str:
    return symbol[1:-1]
