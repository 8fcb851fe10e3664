"""What every run is compared with, target by target: counts, the grammar estimated, the grammar.

- uniform: all tokens alike;
- unigram, bigram, trigram: counts in the training sentences (`newllm.analysis.ngram`);
- grammar_known: the grammar's rules, their probabilities estimated from the training sentences:
  what a perfect learner of structure reaches;
- oracle: the grammar itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from newllm.analysis.ngram import NGram
from newllm.data.batching import EncodedSplit
from newllm.data.module import CorpusDataModule

ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3}


@dataclass(frozen=True)
class References:
    """Losses of all references on the targets of one split, in nats.

    Attributes:
        losses: by name, one for each target, in the order of the split.
        positions: of each target in its sentence, 1 for the first word.
    """

    losses: Mapping[str, np.ndarray]
    positions: np.ndarray

    @property
    def means(self) -> dict[str, float]:
        """Nats per token."""
        return {name: float(losses.mean()) for name, losses in self.losses.items()}

    @property
    def by_position(self) -> dict[str, list[float]]:
        """Nats per token at the first, second, ... word of a sentence."""
        return {
            name: mean_by_position(losses, self.positions) for name, losses in self.losses.items()
        }


class ReferenceModels:
    """All reference models of a corpus, fitted to its training sentences."""

    def __init__(self, data: CorpusDataModule) -> None:
        self._data = data
        train = _sentences(data.split("train"))
        self._ngrams = {
            name: NGram(train, order, data.tokenizer.size) for name, order in ORDERS.items()
        }
        grammar = data.corpus.grammar
        self._estimated = grammar and grammar.estimate(
            sentence.split() for sentence in data.sentences("train")
        )

    def on(self, split: str) -> References:
        """Their losses on a split; those of a grammar only where there is one."""
        encoded = self._data.split(split)
        sentences = _sentences(encoded)
        losses = {
            name: -np.concatenate([model.log_probabilities(sentence) for sentence in sentences])
            for name, model in self._ngrams.items()
        }
        uniform = np.full(encoded.num_targets, math.log(self._ngrams["unigram"].num_predicted))
        of_grammar = self._of_grammar(split)
        return References({"uniform": uniform, **losses, **of_grammar}, positions(encoded))

    def _of_grammar(self, split: str) -> dict[str, np.ndarray]:
        if self._estimated is None:
            return {}
        found = {
            "grammar_known": self._data.grammar_losses(split, self._estimated),
            "oracle": self._data.grammar_losses(split),
        }
        num_targets = self._data.split(split).num_targets
        return {
            name: np.array(losses)
            if len(losses) == num_targets
            else np.full(num_targets, math.fsum(losses) / num_targets)  # tokens are parts of words
            for name, losses in found.items()
            if losses is not None
        }


def _sentences(split: EncodedSplit) -> list[list[int]]:
    return [split[i].tolist() for i in range(len(split))]


def positions(split: EncodedSplit) -> np.ndarray:
    """The position of every target in its sentence, 1 for the first word."""
    return np.concatenate([np.arange(1, number + 1) for number in split.num_positions_N.tolist()])


def mean_by_position(values: np.ndarray, positions: np.ndarray) -> list[float]:
    """Means over the targets at positions 1, 2, ... up to the last that has any."""
    sums = np.bincount(positions, weights=values)[1:]
    return [float(mean) for mean in sums / np.bincount(positions)[1:]]


def gap_closed(loss: float, references: Mapping[str, float]) -> float | None:
    """Share of what can be learned beyond word frequencies: 0 at the unigram, 1 at the oracle."""
    if "oracle" not in references:
        return None
    return (references["unigram"] - loss) / (references["unigram"] - references["oracle"])
