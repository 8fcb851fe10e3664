"""The grammar against the enumeration of all its derivations."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from newllm.data.sources.grammar import END, Grammar, Rules
from newllm.data.sources.grammar_memory import BEGINNING, context_information, window_losses

# "a b" has derivations through all three alternatives of the start, "b" through two.
AMBIGUOUS: Rules = {
    "sentence": {"<first> <second>": 3, "a b": 1, "<second>": 0.5},
    "first": ["a", "<maybe> b", ""],
    "maybe": {"": 2, "a": 1},
    "second": {"b": 1, "a b": 1, "c <maybe>": 2},
}


def derivations(rules: Rules, items: Sequence[str]) -> Iterator[tuple[tuple[str, ...], float]]:
    """The words and the probability of every single derivation."""
    if not items:
        yield (), 1.0
        return
    head, rest = items[0], items[1:]
    if head.startswith("<"):
        rule = rules[head[1:-1]]
        weights = dict(rule) if isinstance(rule, dict) else Counter(rule)
        expansions = [(text.split(), w / sum(weights.values())) for text, w in weights.items()]
    else:
        expansions = []
        for words, probability in derivations(rules, rest):
            yield (head, *words), probability
    for expansion, weight in expansions:
        for words, probability in derivations(rules, [*expansion, *rest]):
            yield words, weight * probability


def enumerate_sentences(rules: Rules) -> dict[tuple[str, ...], float]:
    sentences: dict[tuple[str, ...], float] = defaultdict(float)
    for words, probability in derivations(rules, ["<sentence>"]):
        sentences[words] += probability
    return dict(sentences)


def assert_exact(rules: Rules) -> None:
    grammar = Grammar(rules, "sentence")
    sentences = enumerate_sentences(rules)
    for words, probability in sentences.items():
        assert grammar.log_probability(words) == pytest.approx(math.log(probability))
    entropy = -sum(p * math.log(p) for p in sentences.values())
    length = sum(p * len(words) for words, p in sentences.items())
    assert grammar.entropy() == pytest.approx(entropy, abs=1e-12)
    assert grammar.entropy_per_token() == pytest.approx(entropy / (length + 1), abs=1e-12)

    following: dict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for words, probability in sentences.items():
        for i, token in enumerate([*words, END]):
            following[words[:i]][token] += probability
    for prefix, weights in following.items():
        total = sum(weights.values())
        expected = {token: weight / total for token, weight in weights.items()}
        assert grammar.next_token_distribution(prefix) == pytest.approx(expected)

    losses = window_losses(grammar, max(map(len, sentences)) + 1)
    for size, loss in enumerate(losses, start=1):
        seen: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for words, probability in sentences.items():
            for i, token in enumerate([*words, END]):
                seen[(BEGINNING, *words)[: i + 1][-size:]][token] += probability
        surprise = sum(
            p * math.log(weights.total() / p) for weights in seen.values() for p in weights.values()
        )
        assert loss == pytest.approx(surprise / (length + 1), abs=1e-12)
    excess = sum(loss - grammar.entropy_per_token() for loss in losses)
    assert context_information(grammar) == pytest.approx(excess, abs=1e-9)


def test_agrees_with_enumeration_where_derivations_are_ambiguous() -> None:
    assert len(list(derivations(AMBIGUOUS, ["<sentence>"]))) > len(enumerate_sentences(AMBIGUOUS))
    assert_exact(AMBIGUOUS)


@st.composite
def small_grammars(draw: st.DrawFn) -> Rules:
    """Three symbols, each of which may use those after it, over two words."""
    symbols = ["sentence", "x", "y"]
    rules = {}
    for i, symbol in enumerate(symbols):
        items = ["a", "b", *(f"<{later}>" for later in symbols[i + 1 :])]
        alternative = st.lists(st.sampled_from(items), max_size=3).map(" ".join)
        weight = st.floats(0.01, 10) | st.integers(1, 10)
        rules[symbol] = draw(st.dictionaries(alternative, weight, min_size=1, max_size=3))
    return rules


@settings(max_examples=60, deadline=None)
@given(small_grammars())
def test_agrees_with_enumeration_on_any_small_grammar(rules: Rules) -> None:
    assert_exact(rules)


def test_token_log_probabilities_follow_the_chain_rule() -> None:
    grammar = Grammar(AMBIGUOUS, "sentence")
    words = ["a", "b", "c", "a"]
    expected = [
        math.log(grammar.next_token_distribution(words[:i])[token])
        for i, token in enumerate([*words, END])
    ]
    assert grammar.token_log_probabilities(words) == pytest.approx(expected)


def test_the_impossible_has_probability_zero() -> None:
    grammar = Grammar(AMBIGUOUS, "sentence")
    assert grammar.log_probability([]) == -math.inf
    assert grammar.log_probability(["b", "zebra"]) == -math.inf
    before, *after = grammar.token_log_probabilities(["b", "zebra", "b"])
    assert math.isfinite(before)
    assert after == [-math.inf] * 3
    with pytest.raises(ValueError, match="no sentence of the grammar starts with 'b zebra'"):
        grammar.next_token_distribution(["b", "zebra"])


def test_an_empty_sentence_is_a_sentence() -> None:
    grammar = Grammar({"sentence": {"": 1, "a": 3}}, "sentence")
    assert grammar.next_token_distribution([]) == {END: 0.25, "a": 0.75}
    assert grammar.log_probability([]) == pytest.approx(math.log(0.25))


def test_samples_follow_the_distribution() -> None:
    grammar, rng = Grammar(AMBIGUOUS, "sentence"), random.Random(0)
    probabilities = enumerate_sentences(AMBIGUOUS)
    counts = Counter(tuple(grammar.sample(rng)) for _ in range(20_000))
    assert counts.keys() == probabilities.keys()
    observed = [counts[words] for words in probabilities]
    assert chisquare(observed, [20_000 * p for p in probabilities.values()]).pvalue > 0.01


def test_samples_a_symbol_on_its_own() -> None:
    grammar, rng = Grammar(AMBIGUOUS, "sentence"), random.Random(0)
    samples = {" ".join(grammar.sample(rng, "second")) for _ in range(200)}
    assert samples == {"b", "a b", "c", "c a"}


def test_many_ambiguous_choices_stay_cheap() -> None:
    # 3**40 derivations, but only 40 beliefs.
    rules: Rules = {"sentence": [" ".join(["<bit>"] * 40)], "bit": {"0": 1, "1": 1, "<one>": 1}}
    grammar = Grammar({**rules, "one": ["1"]}, "sentence")
    bit_entropy = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)
    assert grammar.entropy() == pytest.approx(40 * bit_entropy)
    assert grammar.log_probability(["1"] * 40) == pytest.approx(40 * math.log(2 / 3))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"sentence": ["<noun>"]}, "sentence uses <noun>, which has no rule"),
        ({"other": ["a"]}, "the start uses <sentence>, which has no rule"),
        (
            {"sentence": "behind"},
            "grammar: <sentence> is 'behind', but must be a list of alternatives or a table",
        ),
        (
            {"sentence": 3},
            "grammar: <sentence> is 3, but must be a list of alternatives or a table",
        ),
        ({"sentence": ["a", 1]}, "grammar: <sentence>: alternative 1 must be text"),
        ({"sentence": {True: 1}}, "grammar: <sentence>: alternative True must be text"),
        ({"sentence": []}, "<sentence> has no alternatives"),
        ({"sentence": {"a": 0}}, "weight 0 of 'a' must be positive"),
        ({"sentence": {"a": -1.5}}, "weight -1.5 of 'a' must be positive"),
        ({"sentence": {"a": math.nan}}, "weight nan of 'a' must be positive"),
        ({"sentence": {"a": math.inf}}, "weight inf of 'a' must be positive"),
        ({"sentence": ["a <sentence>"]}, "must not contain itself: <sentence> -> <sentence>"),
        ({"sentence": ["<x>"], "x": ["<y>"], "y": ["a", "b <x>"]}, "must not contain itself"),
    ],
)
def test_faulty_rules_are_refused(rules: Rules, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grammar(rules, "sentence")
