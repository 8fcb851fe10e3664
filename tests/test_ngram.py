"""N-gram models: proper distributions, and the formula against a second, slower way."""

import math
from itertools import pairwise

import numpy as np
import pytest

from newllm.analysis.ngram import NGram
from newllm.data.tokenizer import BOS, EOS, PAD, UNK

VOCABULARY = 9
TRAIN = [[BOS, 4, 5, EOS], [BOS, 4, 6, 5, EOS], [BOS, 6, 5, 5, EOS], [BOS, 4, 5, 7, EOS]] * 2
UNSEEN = [BOS, 8, UNK, 8, 4, EOS]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one_and_are_positive_after_any_history(order: int) -> None:
    model = NGram(TRAIN, order, VOCABULARY)
    predicted = [token for token in range(VOCABULARY) if token not in (PAD, BOS)]
    for history in ([BOS], [BOS, 4], [BOS, 8, UNK], [BOS, 4, 6, 5]):
        probabilities = [
            math.exp(model.log_probabilities([*history, token])[-1]) for token in predicted
        ]
        assert min(probabilities) > 0
        assert sum(probabilities) == pytest.approx(1, abs=1e-12)


def test_bigram_is_the_formula_of_the_docstring() -> None:
    model = NGram(TRAIN, 2, VOCABULARY)
    low, high = model._strengths
    # 8 sentences of 28 tokens in all (EOS counted); 5 stands there 10 times, 6 of these after 4.
    num_tokens = sum(len(sentence) - 1 for sentence in TRAIN)
    count_5 = sum(sentence.count(5) for sentence in TRAIN)
    count_4 = sum(sentence.count(4) for sentence in TRAIN)
    count_45 = sum((a, b) == (4, 5) for s in TRAIN for a, b in pairwise(s))
    unigram = (count_5 + low / (VOCABULARY - 2)) / (num_tokens + low)
    bigram = (count_45 + high * unigram) / (count_4 + high)
    assert math.exp(model.log_probabilities([BOS, 4, 5])[1]) == pytest.approx(bigram, rel=1e-12)


def test_unseen_words_keep_the_loss_finite() -> None:
    assert np.isfinite(NGram(TRAIN, 3, VOCABULARY).loss([UNSEEN]))


def test_loss_is_a_mean_over_tokens() -> None:
    model = NGram(TRAIN, 2, VOCABULARY)
    sentences = [TRAIN[0], UNSEEN]
    logs = np.concatenate([model.log_probabilities(sentence) for sentence in sentences])
    assert model.loss(sentences) == pytest.approx(-logs.mean(), rel=1e-12)


def test_higher_orders_win_where_they_can() -> None:
    # 4 is followed by 5 after 6 and by 7 after 8: only a trigram can tell.
    sentences = [[BOS, 6, 4, 5, EOS], [BOS, 8, 4, 7, EOS]] * 10
    losses = [NGram(sentences, order, VOCABULARY).loss(sentences[:2]) for order in (1, 2, 3)]
    assert losses[0] > losses[1] > losses[2]


def test_no_sentences_or_no_order_is_refused() -> None:
    with pytest.raises(ValueError, match="needs an order"):
        NGram(TRAIN, 0, VOCABULARY)
    with pytest.raises(ValueError, match="needs an order"):
        NGram([], 1, VOCABULARY)
