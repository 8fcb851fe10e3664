"""The data card: the figures that tell whether a loss on a corpus means anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from newllm.data.sources.corpora import SPLITS, Corpus


class Counts(NamedTuple):
    """What is counted in the text of a corpus, in its training and validation splits together.

    Attributes:
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
        """Count."""
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
        num_unknown: `<UNK>` among the validation targets, of which no training target tells.
        num_too_long: sentences of each split past `data.max_length`.
        too_long_fate: what was done with them, `dropped` or `truncated`.
        entropy: of a sentence of the grammar, in nats; None without a grammar.
        entropy_floor: nats a token, as are the oracle losses; None where it is not known.
        test_shift: how much likelier the test targets are than the grammar says, nats a token.
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
        """The whole card, a label and a value in each row."""
        counts = self.counts
        mean = counts.num_words / (self.num_sentences["train"] + self.num_sentences["validation"])
        rows = {
            "sentences": self._sentences(),
            "words": f"{counts.num_words:,}",
            "unique words": f"{counts.num_unique_words:,}",
            "vocabulary": f"{self.vocabulary:,} (train, with 4 special tokens)",
            "<UNK> in validation": f"{self.num_unknown:,} of {self.num_validation_targets:,}"
            f" targets ({self.unknown_share:.1%})",
            "words a sentence": f"{counts.shortest} to {counts.longest}, mean {mean:.2f}",
            "too long": self._too_long() or "none",
            "blank lines": f"{counts.num_blank_lines:,}",
            "validation also in train": f"{counts.overlap:,} sentences ({self.overlap_share:.1%})",
        }
        if self.entropy is not None:
            rows["entropy"] = f"{self.entropy:.3f} nats per sentence"
            if self.entropy_floor is not None:
                rows["entropy"] += f", {self.entropy_floor:.4f} per token"
        if self.oracle_loss is not None:
            rows["oracle, validation"] = f"{self.oracle_loss:.4f} nats per token"
        if self.test_oracle_loss is not None:
            rows["oracle, test"] = f"{self.test_oracle_loss:.4f} nats per token"
            rows["test shift"] = (
                f"{-self.test_shift:.1e} nats per token, for knowing what test leaves out"
            )
        return rows | {"sha256": self.sha256}

    def summary(self) -> str:
        """The card in one line."""
        parts = [
            f"{self._sentences()} sentences",
            f"{self.counts.num_words:,} words",
            f"vocabulary {self.vocabulary:,}",
            f"<UNK> {self.unknown_share:.1%} of validation targets",
            f"{self.counts.overlap:,} validation sentences in train",
        ]
        if self.oracle_loss is not None:
            parts.append(f"oracle {self.oracle_loss:.4f}")
        if too_long := self._too_long():
            parts.append(f"too long: {too_long}")
        if self.counts.num_blank_lines:
            parts.append(f"{self.counts.num_blank_lines:,} blank lines")
        return f"{self.name}: " + ", ".join(parts)

    def _sentences(self) -> str:
        return " / ".join(f"{self.num_sentences[split]:,} {split}" for split in SPLITS)

    def _too_long(self) -> str:
        return ", ".join(
            f"{number:,} {self.too_long_fate} in {split}"
            for split, number in self.num_too_long.items()
            if number
        )
