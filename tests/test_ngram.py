"""N-gram models: proper distributions, and the formula against a second, slower way."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from encoded_sentences import encoded

from newllm.data.tokenizer import BOS, EOS, PAD, UNK
from newllm.statistics.ngram import NUM_FOLDS, STRENGTHS, NGram

VOCABULARY = 9
TRAIN = [[BOS, 4, 5, EOS], [BOS, 4, 6, 5, EOS], [BOS, 6, 5, 5, EOS], [BOS, 4, 5, 7, EOS]] * 2
UNSEEN = [BOS, 8, UNK, 8, 4, EOS]
Sentences = Sequence[Sequence[int]]


def of(order: int, train: Sentences = TRAIN, vocabulary_size: int = VOCABULARY) -> NGram:
    return NGram(encoded(train), order, vocabulary_size)


def log_probabilities(model: NGram, *sentences: Sequence[int]) -> np.ndarray:
    """Of the highest order."""
    return model.log_probabilities(encoded(sentences))[-1]


class PlainNGram:
    """The definition, token by token: what `NGram` is held to."""

    def __init__(self, train: Sentences, order: int, vocabulary_size: int) -> None:
        self.uniform, self.strengths = 1 / (vocabulary_size - 2), [0.0] * order
        num_folds = min(NUM_FOLDS, len(train))
        held_out = [train[fold::num_folds] for fold in range(num_folds)]
        rest = [[s for i, s in enumerate(train) if i % num_folds != f] for f in range(num_folds)]
        for k in range(order):
            scores = []
            for self.strengths[k] in STRENGTHS:
                scores.append(0.0)
                for training, testing in zip(rest, held_out, strict=True):
                    self._count(training, order)
                    scores[-1] += sum(self.log_probabilities(testing, k + 1))
            self.strengths[k] = STRENGTHS[int(np.argmax(scores))]
        self._count(train, order)

    def _count(self, train: Sentences, order: int) -> None:
        grams = [
            (gram[length:]) for s in train for gram in _grams(s, order) for length in range(order)
        ]
        self.grams, self.histories = Counter(grams), Counter(gram[:-1] for gram in grams)

    def log_probabilities(self, sentences: Sentences, order: int) -> list[float]:
        found = []
        for gram in (gram for s in sentences for gram in _grams(s, order)):
            p = self.uniform
            for length, strength in enumerate(self.strengths[:order]):
                tail = gram[order - 1 - length :]
                p = (self.grams[tail] + strength * p) / (self.histories[tail[:-1]] + strength)
            found.append(math.log(p))
        return found


def _grams(sentence: Sequence[int], order: int) -> list[tuple[int, ...]]:
    padded = [BOS] * (order - 2) + list(sentence) if order > 1 else list(sentence[1:])
    return [tuple(padded[i : i + order]) for i in range(len(sentence) - 1)]


@pytest.mark.parametrize("seed", range(4))
def test_is_the_plain_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vocabulary_size = int(rng.integers(6, 20))

    def draw(number: int) -> list[list[int]]:
        lengths = rng.integers(0, 9, number)
        return [[BOS, *rng.zipf(1.7, n) % (vocabulary_size - 4) + 4, EOS] for n in lengths]

    train, test = draw(int(rng.integers(1, 40))), [*draw(20), [BOS, UNK, UNK], [BOS, EOS]]
    plain = PlainNGram(train, 4, vocabulary_size)
    model = of(4, train, vocabulary_size)
    assert model.strengths == plain.strengths
    for order, found in enumerate(model.log_probabilities(encoded(test)), start=1):
        assert found == pytest.approx(plain.log_probabilities(test, order), abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one_and_are_positive_after_any_history(order: int) -> None:
    model = of(order)
    predicted = [token for token in range(VOCABULARY) if token not in (PAD, BOS)]
    for history in ([BOS], [BOS, 4], [BOS, 8, UNK], [BOS, 4, 6, 5]):
        probabilities = [
            math.exp(log_probabilities(model, [*history, token])[-1]) for token in predicted
        ]
        assert min(probabilities) > 0
        assert sum(probabilities) == pytest.approx(1, abs=1e-12)


def test_bigram_is_the_formula_of_the_docstring() -> None:
    model = of(2)
    low, high = model.strengths
    # 8 sentences of 28 tokens in all (EOS counted); 5 stands there 10 times, 6 of these after 4.
    num_tokens = sum(len(sentence) - 1 for sentence in TRAIN)
    count_5 = sum(sentence.count(5) for sentence in TRAIN)
    count_4 = sum(sentence.count(4) for sentence in TRAIN)
    count_45 = sum((a, b) == (4, 5) for s in TRAIN for a, b in pairwise(s))
    unigram = (count_5 + low / (VOCABULARY - 2)) / (num_tokens + low)
    bigram = (count_45 + high * unigram) / (count_4 + high)
    assert math.exp(log_probabilities(model, [BOS, 4, 5])[1]) == pytest.approx(bigram, rel=1e-12)


def test_unseen_words_keep_the_loss_finite() -> None:
    assert np.isfinite(log_probabilities(of(3), UNSEEN)).all()


def test_sentences_are_scored_each_by_itself() -> None:
    model, sentences = of(3), [TRAIN[0], UNSEEN, TRAIN[1]]
    alone = np.concatenate([log_probabilities(model, sentence) for sentence in sentences])
    assert log_probabilities(model, *sentences) == pytest.approx(alone, abs=1e-12)


def test_higher_orders_win_where_they_can() -> None:
    # 4 is followed by 5 after 6 and by 7 after 8: only a trigram can tell.
    sentences = [[BOS, 6, 4, 5, EOS], [BOS, 8, 4, 7, EOS]] * 10
    logs = of(3, sentences).log_probabilities(encoded(sentences[:2]))
    unigram, bigram, trigram = (log.mean() for log in logs)
    assert unigram < bigram < trigram


def test_no_sentences_or_no_order_is_refused() -> None:
    with pytest.raises(ValueError, match="needs an order"):
        of(0)
    with pytest.raises(ValueError, match="needs an order"):
        of(1, [])
