"""References target by target, the grammar estimated from sentences, and the divergence from it."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import context_model

from newllm.data.sources.grammar import Grammar
from newllm.data.sources.sentences import SentenceSource
from newllm.data.tokenizer import EOS
from newllm.models.language_model import LanguageModel
from newllm.statistics.predictions import divergences, target_losses
from newllm.statistics.references import ReferenceModels, gap_closed, mean_by_position

Build = Callable[..., SentenceSource]


@pytest.fixture
def quality500(tmp_path: Path) -> SentenceSource:
    data = SentenceSource("quality500", order_seed=1, directory=str(tmp_path))
    data.setup()
    return data


def make_model(data: SentenceSource) -> LanguageModel:
    torch.manual_seed(0)
    return context_model(
        vocabulary_size=data.tokenizer.size,
        embedding_dim=8,
        context_dim=8,
        hidden_dim=8,
        num_layers=1,
    ).eval()


RULES = {
    "sentence": ["<who> sings <how>", "<who> sleeps"],
    "who": ["a bird", "a child", "nobody"],
    "how": {"": 1, "well": 3},
}


def test_estimated_probabilities_are_counts_plus_one() -> None:
    sentences = ["a bird sings well", "a bird sleeps", "nobody sings", "a bird sings well"]
    estimated = Grammar(RULES, "sentence").estimate(line.split() for line in sentences)
    # who: 3 birds, no child, 1 nobody; sentence: 3 sing, 1 sleeps; how: 2 well, 1 without.
    assert estimated.next_token_distribution([]) == pytest.approx({"a": 5 / 7, "nobody": 2 / 7})
    assert estimated.next_token_distribution(["a"]) == pytest.approx(
        {"bird": 4 / 5, "child": 1 / 5}
    )
    assert estimated.next_token_distribution(["nobody"]) == pytest.approx(
        {"sings": 4 / 6, "sleeps": 2 / 6}
    )
    assert estimated.next_token_distribution(["nobody", "sings"]) == pytest.approx(
        {"well": 3 / 5, "<EOS>": 2 / 5}
    )


def test_a_derivation_in_doubt_counts_in_shares() -> None:
    rules = {"s": ["<a> <b>"], "a": ["x", "x y"], "b": ["z", "y z"]}
    estimated = Grammar(rules, "s").estimate([["x", "y", "z"]])  # "x y" "z", or "x" "y z"
    distribution = estimated.next_token_distribution(["x"])
    # Each alternative counts 1/2 + 1 of 1 + 2, as before: P(x z) = 1/4.
    assert distribution == pytest.approx({"z": 1 / 4, "y": 3 / 4})


def test_a_sentence_of_another_grammar_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match="does not make the sentence 'a dog sings'"):
        Grammar(RULES, "sentence").estimate([["a", "dog", "sings"]])


def test_with_more_sentences_the_estimate_nears_the_grammar(quality500: SentenceSource) -> None:
    means = ReferenceModels(quality500).on("validation").means
    assert list(means) == ["uniform", "unigram", "bigram", "trigram", "grammar_known", "oracle"]
    assert list(means.values()) == sorted(means.values(), reverse=True)
    assert means["oracle"] == pytest.approx(quality500.oracle_loss("validation"), abs=1e-12)
    assert 0 < means["grammar_known"] - means["oracle"] < 0.05
    assert means["uniform"] == pytest.approx(math.log(quality500.tokenizer.size - 2))


def test_positions_partition_the_targets(quality500: SentenceSource) -> None:
    found = ReferenceModels(quality500).on("validation")
    counts = np.bincount(found.positions)[1:]
    for name, by_position in found.by_position.items():
        assert len(by_position) == len(counts)
        mean = float((counts * by_position).sum() / counts.sum())
        assert mean == pytest.approx(found.means[name], abs=1e-12)
    assert mean_by_position(np.array([1.0, 2.0, 5.0]), np.array([1, 2, 1])) == [3.0, 2.0]


def test_target_losses_are_those_of_each_sentence_alone(quality500: SentenceSource) -> None:
    model, split = make_model(quality500), quality500.encoded("validation")
    losses = target_losses(model, split)
    assert len(losses) == split.num_targets
    start = 0
    for i in range(3):
        ids = split[i]
        logits = model(ids[None, :-1])[0][0]
        expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        found = losses[start : start + len(ids) - 1]
        assert found == pytest.approx(expected.detach().numpy(), abs=1e-5)
        start += len(ids) - 1


def test_divergence_is_the_expected_excess(quality500: SentenceSource) -> None:
    """Against the definition, summed over the whole vocabulary for one prefix."""
    model, grammar = make_model(quality500), quality500.corpus.grammar
    assert grammar is not None
    kl = divergences(model, quality500)
    assert kl is not None
    assert kl.min() >= 0
    words = quality500.sentences("validation")[0].split()
    ids = quality500.encoded("validation")[0]
    position = 4
    log_V = model(ids[None, :-1])[0][0, position].log_softmax(-1)
    expected = 0.0
    for word, p in grammar.next_token_distribution(words[:position]).items():
        token = EOS if word == "<EOS>" else quality500.tokenizer.encode(word)[1]
        expected += p * (math.log(p) - log_V[token].item())
    assert kl[position] == pytest.approx(expected, abs=1e-5)


def test_what_has_no_grammar_has_no_oracle(tmp_path: Path) -> None:
    data = SentenceSource("tiny30", order_seed=1, directory=str(tmp_path))
    data.setup()
    found = ReferenceModels(data).on("validation")
    assert list(found.means) == ["uniform", "unigram", "bigram", "trigram"]
    assert divergences(make_model(data), data) is None
    assert gap_closed(3.0, found.means) is None


def test_share_of_the_gap_closed() -> None:
    means = {"unigram": 5.0, "oracle": 1.0}
    assert [gap_closed(loss, means) for loss in (5.0, 2.0, 1.0)] == [0.0, 0.75, 1.0]


def test_parts_of_words_keep_their_oracle(tmp_path: Path) -> None:
    data = SentenceSource(
        "quality500", order_seed=1, directory=str(tmp_path), tokenizer="bpe", vocabulary_size=300,
        max_length=200,
    )  # fmt: skip
    data.setup()
    means = ReferenceModels(data).on("validation").means
    assert means["oracle"] == pytest.approx(data.oracle_loss("validation"))
    assert means["oracle"] < means["trigram"]
    assert divergences(make_model(data), data) is None
