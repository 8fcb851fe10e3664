"""N-gram models, estimated from training sentences.

An n-gram model interpolates with the next lower order, down to the uniform distribution:

    p_k(w | h) = (count(h w) + a_k p_{k-1}(w | h')) / (count(h) + a_k)

where h' is h without its oldest token (Dirichlet smoothing; MacKay & Peto 1995). The strength a_k
of each order is the one that scores best in cross-validation inside the training sentences.

Histories and n-grams are counted as whole numbers: the key of a history combines the number of the
history without its oldest token with that token.

Shape suffix: S all targets of a split, in order.
"""

from __future__ import annotations

import numpy as np

from newllm.data.encoded import EncodedSplit
from newllm.data.tokenizer import NUM_NEVER_PREDICTED

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 1e5)
NUM_FOLDS = 5
LONGEST_UNIT = 256  # targets that are in one fold, if there are few sequences


class NGram:
    """An n-gram model together with those of all lower orders.

    Probabilities sum to 1 over all tokens but `<PAD>` and `<BOS>`, which are never predicted, and
    are positive for unseen tokens and histories.

    Args:
        train: the training sentences.
        order: 1 for unigrams, 2 for bigrams, and so on.
        vocabulary_size: tokens are 0 ... vocabulary_size - 1.

    Raises:
        ValueError: the order is below 1 or there are no sentences.
    """

    def __init__(self, train: EncodedSplit, order: int, vocabulary_size: int) -> None:
        if order < 1 or not len(train):
            raise ValueError(f"an n-gram model needs an order >= 1 and sentences, not {order}")
        self.vocabulary_size = vocabulary_size
        self._counts: list[_Counts] = []
        self.strengths: list[float] = []
        fold_S = _folds(train)
        history_S = np.zeros(train.num_targets, np.int32)
        lower_S = np.full(train.num_targets, self._uniform)
        for length in range(order):
            counts = _Counts(vocabulary_size)
            if length:
                history_S = counts.number_histories(history_S, train.previous(length))
            gram_S = counts.count(history_S, train.previous(0))
            strength, lower_S = _cross_validate(
                _held_out_counts(gram_S, counts.grams, fold_S),
                _held_out_counts(history_S, counts.histories, fold_S),
                lower_S,
            )
            self._counts.append(counts)
            self.strengths.append(strength)

    def log_probabilities(self, split: EncodedSplit) -> list[np.ndarray]:
        """Log-probabilities of the targets of a split [S], for each order from 1 up."""
        found = []
        history_S = np.zeros(split.num_targets, np.int32)
        probability_S = np.full(split.num_targets, self._uniform)
        target_S = split.previous(0)
        for length, (counts, strength) in enumerate(zip(self._counts, self.strengths, strict=True)):
            if length:
                history_S = counts.find_histories(history_S, split.previous(length))
            grams_S, histories_S = counts.look_up(history_S, target_S)
            probability_S = (grams_S + strength * probability_S) / (histories_S + strength)
            found.append(np.log(probability_S))
        return found

    @property
    def _uniform(self) -> float:
        return 1.0 / (self.vocabulary_size - NUM_NEVER_PREDICTED)


class _Counts:
    """Counts of each token after each history of one length. Unseen ones have the number -1."""

    def __init__(self, vocabulary_size: int) -> None:
        self._vocabulary_size = vocabulary_size
        self._history_keys = np.zeros(0, np.int64)

    def number_histories(self, shorter_S: np.ndarray, oldest_S: np.ndarray) -> np.ndarray:
        """Numbers of the histories of the training sentences, given those of one token less."""
        self._history_keys = np.unique(self._keys(shorter_S, oldest_S))
        return self.find_histories(shorter_S, oldest_S)

    def find_histories(self, shorter_S: np.ndarray, oldest_S: np.ndarray) -> np.ndarray:
        """Numbers of the histories of any sentences. int32."""
        return self._find(self._history_keys, shorter_S, oldest_S)

    def count(self, history_S: np.ndarray, target_S: np.ndarray) -> np.ndarray:
        """Count the n-grams of the training sentences and return their numbers. int32."""
        self._gram_keys = np.unique(self._keys(history_S, target_S))
        number_S = self._find(self._gram_keys, history_S, target_S)
        self.histories = np.bincount(history_S).astype(np.int32)
        self.grams = np.bincount(number_S).astype(np.int32)
        return number_S

    def look_up(self, history_S: np.ndarray, target_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """count(h w) and count(h) for every target of any sentences."""
        gram_S = self._find(self._gram_keys, history_S, target_S)
        return _pick(self.grams, gram_S), _pick(self.histories, history_S)

    def _keys(self, number_S: np.ndarray, token_S: np.ndarray) -> np.ndarray:
        """One whole number for each pair, -1 if the first is negative. int64."""
        keys_S = number_S.astype(np.int64) * self._vocabulary_size + token_S
        return np.where(number_S < 0, -1, keys_S)

    def _find(self, keys: np.ndarray, number_S: np.ndarray, token_S: np.ndarray) -> np.ndarray:
        """The place of the key of each pair among the sorted keys, -1 if it is missing. int32."""
        wanted_S = self._keys(number_S, token_S)
        place_S = np.searchsorted(keys, wanted_S).clip(max=len(keys) - 1)
        return np.where(keys[place_S] == wanted_S, place_S, -1).astype(np.int32)


def _pick(counts: np.ndarray, number_S: np.ndarray) -> np.ndarray:
    """The count of each number, 0 for -1."""
    return np.where(number_S < 0, 0, counts[number_S])


def _folds(train: EncodedSplit) -> np.ndarray:
    """The fold of each target. Sequences are assigned in turn; parts of them, if they are few."""
    if train.num_sequences >= NUM_FOLDS:
        unit_N = train.sequence_N.numpy()
    else:
        train = train.cut(LONGEST_UNIT)
        unit_N = np.arange(len(train))
    return np.repeat((unit_N % NUM_FOLDS).astype(np.int8), train.num_targets_N.numpy())


def _cross_validate(
    grams_S: np.ndarray, histories_S: np.ndarray, lower_S: np.ndarray
) -> tuple[float, np.ndarray]:
    """The strength of one order that scores best on held-out folds, and its probabilities.

    Args:
        grams_S, histories_S: count(h w) and count(h) of each training target outside its fold.
        lower_S: the probability of each target under the next lower order.
    """

    def probabilities(strength: float) -> np.ndarray:
        found: np.ndarray = (grams_S + strength * lower_S) / (histories_S + strength)
        return found

    best = max(STRENGTHS, key=lambda strength: float(np.log(probabilities(strength)).sum()))
    return best, probabilities(best)


def _held_out_counts(number_S: np.ndarray, counts: np.ndarray, fold_S: np.ndarray) -> np.ndarray:
    """The count of each target's n-gram or history in the other folds. int32."""
    counts_S = counts[number_S]
    for fold in range(NUM_FOLDS):
        is_held_out_S = fold_S == fold
        own_S = number_S[is_held_out_S]
        counts_S[is_held_out_S] -= np.bincount(own_S)[own_S].astype(np.int32)
    return counts_S
