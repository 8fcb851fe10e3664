"""N-gram models, estimated from training sentences.

An n-gram model interpolates with the next lower order, down to the uniform distribution:

    p_k(w | h) = (count(h w) + a_k p_{k-1}(w | h')) / (count(h) + a_k)

where h' is h without its oldest token (Dirichlet smoothing; MacKay & Peto 1995). The strength a_k
of each order is the one that scores best in cross-validation inside the training sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from newllm.data.tokenizer import BOS, PAD

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 1e5)
NUM_FOLDS = 5

Sentence = Sequence[int]


class NGram:
    """An n-gram model of encoded sentences `[BOS, ..., EOS]`.

    Its probabilities sum to 1 over all tokens but `<PAD>` and `<BOS>`, which are never predicted,
    and are positive for unseen tokens and histories.

    Args:
        sentences: the training sentences.
        order: 1 for unigrams, 2 for bigrams, and so on.
        vocabulary_size: tokens are 0 ... vocabulary_size - 1.

    Raises:
        ValueError: if the order is below 1 or there are no sentences.
    """

    def __init__(self, sentences: Sequence[Sentence], order: int, vocabulary_size: int) -> None:
        if order < 1 or not sentences:
            raise ValueError(f"an n-gram model needs an order >= 1 and sentences, not {order}")
        self.order = order
        self.vocabulary_size = vocabulary_size
        self._strengths = _cross_validate(sentences, order, vocabulary_size)
        self._counts = [_Counts(sentences, length) for length in range(order)]

    def log_probabilities(self, sentence: Sentence) -> np.ndarray:
        """Log-probability of each token after `<BOS>` [len(sentence) - 1]."""
        return np.log(_interpolate([sentence], self._counts, self._strengths, self._uniform))

    def loss(self, sentences: Sequence[Sentence]) -> float:
        """Mean of -log p over all tokens of the sentences, `<EOS>` included, in nats."""
        probabilities = _interpolate(sentences, self._counts, self._strengths, self._uniform)
        return float(-np.log(probabilities).mean())

    @property
    def num_predicted(self) -> int:
        """How many different tokens can be predicted."""
        return round(1 / self._uniform)

    @property
    def _uniform(self) -> float:
        return _uniform(self.vocabulary_size)


class _Counts:
    """How often each token follows each history of one length."""

    def __init__(self, sentences: Sequence[Sentence], length: int) -> None:
        self.length = length
        self.tokens: Counter[tuple[int, ...]] = Counter()
        self.histories: Counter[tuple[int, ...]] = Counter()
        for gram in _grams(sentences, length):
            self.tokens[gram] += 1
            self.histories[gram[:-1]] += 1

    def look_up(self, sentences: Sequence[Sentence]) -> tuple[np.ndarray, np.ndarray]:
        """count(h w) and count(h) for every predicted token of the sentences."""
        grams = list(_grams(sentences, self.length))
        tokens = [self.tokens[gram] for gram in grams]
        histories = [self.histories[gram[:-1]] for gram in grams]
        return np.array(tokens, float), np.array(histories, float)


def _grams(sentences: Sequence[Sentence], length: int) -> list[tuple[int, ...]]:
    """Each predicted token behind its `length` predecessors, `<BOS>` repeated at the start."""
    grams = []
    for sentence in sentences:
        padded = (BOS,) * (length - 1) + tuple(sentence)
        shift = max(length - 1, 0)
        grams += [padded[i + shift - length : i + shift + 1] for i in range(1, len(sentence))]
    return grams


def _uniform(vocabulary_size: int) -> float:
    return 1.0 / len(set(range(vocabulary_size)) - {PAD, BOS})


def _interpolate(
    sentences: Sequence[Sentence],
    counts: Sequence[_Counts],
    strengths: Sequence[float],
    uniform: float,
) -> np.ndarray:
    """Probability of every predicted token of the sentences, in order."""
    probabilities = np.full(sum(len(sentence) - 1 for sentence in sentences), uniform)
    for order_counts, strength in zip(counts, strengths, strict=True):
        tokens, histories = order_counts.look_up(sentences)
        probabilities = (tokens + strength * probabilities) / (histories + strength)
    return probabilities


def _cross_validate(sentences: Sequence[Sentence], order: int, vocabulary_size: int) -> list[float]:
    """The best strength of each order, from the lowest up, on held-out folds of the sentences."""
    num_folds = min(NUM_FOLDS, len(sentences))
    held_out = [sentences[fold::num_folds] for fold in range(num_folds)]
    rest = [
        [sentence for i, sentence in enumerate(sentences) if i % num_folds != fold]
        for fold in range(num_folds)
    ]
    num_tokens = [sum(len(sentence) - 1 for sentence in fold) for fold in held_out]
    lower = np.full(sum(num_tokens), _uniform(vocabulary_size))
    strengths: list[float] = []
    for length in range(order):
        found = [
            _Counts(train, length).look_up(test) for train, test in zip(rest, held_out, strict=True)
        ]
        tokens = np.concatenate([pair[0] for pair in found])
        histories = np.concatenate([pair[1] for pair in found])
        candidates = [(tokens + a * lower) / (histories + a) for a in STRENGTHS]
        scores = [float(np.log(probabilities).sum()) for probabilities in candidates]
        best = int(np.argmax(scores))
        strengths.append(STRENGTHS[best])
        lower = candidates[best]
    return strengths
