"""Reference losses of an evaluation split, target by target.

- uniform: all tokens are equally likely;
- unigram, bigram, trigram: counts in the training sequences (`newllm.statistics.ngram`);
- xz: a compressor that has seen the training text (`newllm.statistics.compression`);
- what the source itself knows, such as the loss of the grammar that its sentences are drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from newllm.data.encoded import EncodedSplit
from newllm.data.source import Source
from newllm.data.tokenizer import NUM_NEVER_PREDICTED
from newllm.statistics.compression import xz_nats
from newllm.statistics.ngram import NGram

NGRAMS = ("unigram", "bigram", "trigram")  # by order
MAX_COUNTED = 2_000_000  # training targets for n-grams, from the first sequence on
MOST_POSITIONS = 1024  # of which losses are told one by one
NUM_BINS = 40  # of more positions, wider ones farther from the start


@dataclass(frozen=True)
class References:
    """Losses of all references on one split, in nats.

    Attributes:
        means: by name, nats per token.
        losses: by name, one for each target, in the order of the split.
        positions: of each target in its row, 1 for the first. Where rows are longer than
            `MOST_POSITIONS`, the number of a bin of positions instead.
        places: the mean position of the targets of each bin; None without bins.
        num_bytes: of text that the targets stand for, if each token stands for some.
    """

    means: Mapping[str, float]
    losses: Mapping[str, np.ndarray] = field(default_factory=dict)
    positions: np.ndarray | None = None
    places: Sequence[float] | None = None
    num_bytes: int | None = None

    def bits_per_byte(self, loss: float) -> float | None:
        """A loss in nats per token as bits per byte of text."""
        if not self.num_bytes or self.positions is None:
            return None
        return loss * len(self.positions) / (self.num_bytes * math.log(2))

    @property
    def in_bits_per_byte(self) -> dict[str, float]:
        """The means in bits per byte of text; empty if tokens do not stand for bytes."""
        found = {name: self.bits_per_byte(loss) for name, loss in self.means.items()}
        return {name: bits for name, bits in found.items() if bits is not None}

    @property
    def by_position(self) -> dict[str, list[float]]:
        """Nats per token at the first, second, ... position or bin."""
        if self.positions is None:
            return {}
        return {
            name: mean_by_position(losses, self.positions) for name, losses in self.losses.items()
        }


def references_on(source: Source, split: str) -> References:
    """The references of any source on one of its splits."""
    return ReferenceModels(source).on(split)


class ReferenceModels:
    """All reference models of a source, fitted to its training sequences on first use."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def on(self, split: str) -> References:
        """Their losses on a split."""
        source, encoded = self._source, self._source.encoded(split)
        losses: dict[str, float | np.ndarray] = {}
        if encoded is not None:
            uniform = math.log(source.vocabulary_size - NUM_NEVER_PREDICTED)
            losses["uniform"] = np.full(encoded.num_targets, uniform)
            losses |= source.cached(f"n-grams {split}", lambda: self._counted(encoded))
            if split != "train" and source.num_bytes(split):
                found = source.cached(f"xz {split}", lambda: self._compressed(split))
                losses |= {name: float(nats) / encoded.num_targets for name, nats in found.items()}
        losses |= source.reference_losses(split)
        oracle = source.oracle_loss(split)
        if oracle is not None and "oracle" not in losses:
            losses["oracle"] = oracle
        return References(
            means={name: float(np.mean(loss)) for name, loss in losses.items()},
            losses={name: loss for name, loss in losses.items() if isinstance(loss, np.ndarray)},
            **_positions(encoded),
            num_bytes=source.num_bytes(split),
        )

    def _counted(self, split: EncodedSplit) -> dict[str, np.ndarray]:
        self._source.announce("counting n-grams")
        logs = self._ngram.log_probabilities(split)
        return {name: -log for name, log in zip(NGRAMS, logs, strict=True)}

    def _compressed(self, split: str) -> dict[str, np.ndarray]:
        known, texts = self._source.texts("train"), self._source.texts(split)
        if known is None or texts is None:
            return {}
        self._source.announce("compressing the text with xz")
        return {"xz": np.array(xz_nats(known, texts))}

    @cached_property
    def _ngram(self) -> NGram:
        train = self._source.encoded("train")
        assert train is not None, "a source with encoded splits has encoded training data"
        train = train.cut(MAX_COUNTED).head(MAX_COUNTED)
        return NGram(train, len(NGRAMS), self._source.vocabulary_size)


def positions(split: EncodedSplit) -> np.ndarray:
    """The position of every target in its row, 1 for the first one that is scored."""
    first_S = np.repeat(split.first_target_N.numpy(), split.num_targets_N.numpy())
    return np.arange(1, split.num_targets + 1) - first_S


def _positions(split: EncodedSplit | None) -> dict[str, Any]:
    """`positions` and `places` of `References`."""
    if split is None:
        return {}
    position_S = positions(split)
    longest = int(position_S.max(initial=0))
    if longest <= MOST_POSITIONS:
        return {"positions": position_S}
    starts = np.unique(np.geomspace(1, longest + 1, NUM_BINS + 1, dtype=int))[:-1]
    bin_S = np.searchsorted(starts, position_S, side="right")
    return {"positions": bin_S, "places": mean_by_position(position_S, bin_S)}


def mean_by_position(values: np.ndarray, positions: np.ndarray) -> list[float]:
    """Means over the targets at positions 1, 2, ... up to the last."""
    sums = np.bincount(positions, weights=values)[1:]
    return [float(mean) for mean in sums / np.bincount(positions)[1:]]


def gap_closed(loss: float, references: Mapping[str, float]) -> float | None:
    """Share of the loss that can be learned beyond word frequencies: 0 at unigram, 1 at oracle."""
    if not {"unigram", "oracle"} <= references.keys():
        return None
    return (references["unigram"] - loss) / (references["unigram"] - references["oracle"])
