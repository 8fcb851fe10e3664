"""The data card: the figures that a loss on a corpus is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from newllm.data.sources.corpora import SPLITS, Corpus

SUMMARY = (
    "sentences",
    "words",
    "vocabulary",
    "<UNK> in validation",
    "too long",
    "blank lines",
    "validation also in train",
    "oracle, validation",
)


class Counts(NamedTuple):
    """Counts over the training and validation sentences of a corpus.

    Attributes:
        shortest, longest: words of a sentence.
        overlap: validation sentences that are in the training split as well.
    """

    num_words: int
    num_unique_words: int
    shortest: int
    longest: int
    overlap: int
    num_blank_lines: int

    @classmethod
    def of(cls, corpus: Corpus) -> Counts:
        words: set[str] = set()
        num_words, shortest, longest = 0, 1 << 62, 0
        for sentence in chain(corpus.train, corpus.validation):
            found = sentence.split()
            words.update(found)
            num_words += len(found)
            shortest, longest = min(shortest, len(found)), max(longest, len(found))
        validation = set(corpus.validation)  # the smaller one
        shared = validation.intersection(corpus.train)
        overlap = sum(sentence in shared for sentence in corpus.validation)
        return cls(num_words, len(words), shortest, longest, overlap, corpus.num_blank_lines)


@dataclass(frozen=True)
class Card:
    """A corpus in figures.

    Attributes:
        num_sentences: of each split.
        num_unknown: `<UNK>` among the validation targets.
        num_too_long: sentences of each split past `data.max_length`.
        too_long_fate: `dropped` or `truncated`.
        entropy: of a sentence of the grammar, in nats. None without a grammar.
        entropy_floor: in nats per token, as are the oracle losses. None if it is not known.
        test_shift: how much likelier test targets are than under the grammar, in nats per token.
    """

    name: str
    counts: Counts
    num_sentences: Mapping[str, int]
    vocabulary: int
    num_unknown: int
    num_validation_targets: int
    num_too_long: Mapping[str, int]
    too_long_fate: str
    entropy: float | None
    entropy_floor: float | None
    oracle_loss: float | None
    test_oracle_loss: float | None
    test_shift: float
    sha256: str

    @property
    def unknown_share(self) -> float:
        """Share of `<UNK>` among the validation targets."""
        return self.num_unknown / self.num_validation_targets

    @property
    def overlap_share(self) -> float:
        """Share of the validation sentences that are in the training split as well."""
        return self.counts.overlap / self.num_sentences["validation"]

    def rows(self) -> dict[str, str]:
        """The whole card as labels and values."""
        counts = self.counts
        mean = counts.num_words / (self.num_sentences["train"] + self.num_sentences["validation"])
        too_long = [
            f"{number:,} {self.too_long_fate} in {split}"
            for split, number in self.num_too_long.items()
            if number
        ]
        rows = {
            "sentences": " / ".join(f"{self.num_sentences[split]:,} {split}" for split in SPLITS),
            "words": f"{counts.num_words:,}",
            "unique words": f"{counts.num_unique_words:,}",
            "vocabulary": f"{self.vocabulary:,} (train, with 4 specials)",
            "<UNK> in validation": f"{self.num_unknown:,} of {self.num_validation_targets:,}"
            f" targets ({self.unknown_share:.1%})",
            "words a sentence": f"{counts.shortest} to {counts.longest}, mean {mean:.2f}",
            "too long": ", ".join(too_long) or "none",
            "blank lines": f"{counts.num_blank_lines:,}",
            "validation also in train": f"{counts.overlap:,} sentences ({self.overlap_share:.1%})",
        }
        if self.entropy is not None:
            rows["entropy"] = f"{self.entropy:.3f} nats a sentence"
            if self.entropy_floor is not None:
                rows["entropy"] += f", {self.entropy_floor:.4f} a token"
        if self.oracle_loss is not None:
            rows["oracle, validation"] = f"{self.oracle_loss:.4f} nats a token"
        if self.test_oracle_loss is not None:
            rows["oracle, test"] = f"{self.test_oracle_loss:.4f} nats a token"
            rows["test shift"] = (
                f"{-self.test_shift:.1e} nats a token, for knowing what test leaves out"
            )
        return rows | {"sha256": self.sha256}

    def summary(self) -> str:
        """The card in one line."""
        rows = self.rows()
        shown = [f"{label}: {rows[label]}" for label in SUMMARY if label in rows]
        return f"{self.name}; " + "; ".join(shown)
