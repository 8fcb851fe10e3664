"""Reference losses of an evaluation split, target by target.

- uniform: all tokens are equally likely;
- unigram, bigram, trigram: counts in the training sentences (`newllm.statistics.ngram`);
- grammar_known: the grammar with probabilities estimated from the training sentences, the loss of a
  perfect learner of its structure;
- oracle: the grammar itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from newllm.data.encoded import EncodedSplit
from newllm.data.source import Source
from newllm.data.sources.grammar import Grammar
from newllm.data.sources.sentences import SentenceSource
from newllm.data.tokenizer import NUM_NEVER_PREDICTED
from newllm.statistics.ngram import NGram

NGRAMS = ("unigram", "bigram", "trigram")  # by order
MAX_COUNTED = 2_000_000  # training targets for n-grams, from the first sentence on


@dataclass(frozen=True)
class References:
    """Losses of all references on one split, in nats.

    Attributes:
        means: by name, nats per token.
        losses: by name, one for each target, in the order of the split.
        positions: of each target in its sentence, 1 for the first word.
    """

    means: Mapping[str, float]
    losses: Mapping[str, np.ndarray] = field(default_factory=dict)
    positions: np.ndarray | None = None

    @property
    def by_position(self) -> dict[str, list[float]]:
        """Nats per token at the first, second, ... word of a sentence."""
        if self.positions is None:
            return {}
        return {
            name: mean_by_position(losses, self.positions) for name, losses in self.losses.items()
        }


def references_on(source: Source, split: str) -> References:
    """The references of any source on one of its splits."""
    if isinstance(source, SentenceSource):
        return ReferenceModels(source).on(split)
    oracle = source.oracle_loss(split)
    known = {} if oracle is None else {"oracle": oracle}
    return References(source.reference_losses(split) | known)


class ReferenceModels:
    """All reference models of a corpus, fitted to its training sentences on first use."""

    def __init__(self, data: SentenceSource) -> None:
        self._data = data

    def on(self, split: str) -> References:
        """Their losses on a split."""
        encoded, vocabulary_size = self._data.split(split), self._data.tokenizer.size
        counted = self._data.cache.get(
            "n-grams", {**self._data.settings, "split": split}, lambda: self._counted(encoded)
        )
        uniform = math.log(vocabulary_size - NUM_NEVER_PREDICTED)
        losses = {
            "uniform": np.full(encoded.num_targets, uniform),
            **counted,
            **self._of_grammar(split),
        }
        means = {name: float(of_name.mean()) for name, of_name in losses.items()}
        return References(means, losses, positions(encoded))

    def _counted(self, split: EncodedSplit) -> dict[str, np.ndarray]:
        self._data.announce("counting n-grams")
        logs = self._ngram.log_probabilities(split)
        return {name: -log for name, log in zip(NGRAMS, logs, strict=True)}

    @cached_property
    def _ngram(self) -> NGram:
        train = self._data.split("train").head(MAX_COUNTED)
        return NGram(train, len(NGRAMS), self._data.tokenizer.size)

    @cached_property
    def _estimated(self) -> Grammar | None:
        grammar = self._data.grammar
        return grammar and grammar.estimate(
            sentence.split() for sentence in self._data.sentences("train")
        )

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


def positions(split: EncodedSplit) -> np.ndarray:
    """The position of every target in its sentence, 1 for the first word."""
    first_S = np.repeat(split.first_target_N.numpy(), split.num_positions_N.numpy())
    return np.arange(1, split.num_targets + 1) - first_S


def mean_by_position(values: np.ndarray, positions: np.ndarray) -> list[float]:
    """Means over the targets at positions 1, 2, ... up to the last."""
    sums = np.bincount(positions, weights=values)[1:]
    return [float(mean) for mean in sums / np.bincount(positions)[1:]]


def gap_closed(loss: float, references: Mapping[str, float]) -> float | None:
    """Share of the loss that can be learned beyond word frequencies: 0 at unigram, 1 at oracle."""
    if not {"unigram", "oracle"} <= references.keys():
        return None
    return (references["unigram"] - loss) / (references["unigram"] - references["oracle"])
