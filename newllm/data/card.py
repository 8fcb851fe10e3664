"""The data card: the figures that tell whether a loss on a corpus means anything."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from newllm.data.sources.corpora import SPLITS, Corpus


@dataclass(frozen=True)
class Card:
    """A corpus in figures. Words and lengths are those of train and validation together.

    Attributes:
        num_unknown: ``<UNK>`` among the validation targets, of which no training target tells.
        num_too_long: sentences of each split past ``data.max_length``.
        too_long_fate: what was done with them, ``dropped`` or ``truncated``.
        entropy_floor: nats a token, as are the oracle losses; None where it is not known.
    """

    corpus: Corpus
    vocabulary: int
    num_unknown: int
    num_validation_targets: int
    num_too_long: Mapping[str, int]
    too_long_fate: str
    entropy_floor: float | None
    oracle_loss: float | None
    test_oracle_loss: float | None
    num_test_targets: int

    @property
    def num_sentences(self) -> dict[str, int]:
        """Sentences of each split."""
        return {split: len(self.corpus.split(split)) for split in SPLITS}

    @cached_property
    def lengths(self) -> np.ndarray:
        """Words in each sentence."""
        return np.array([sentence.count(" ") + 1 for sentence in self._seen()], np.int32)

    @property
    def num_words(self) -> int:
        """Words, repetitions counted."""
        return int(self.lengths.sum())

    @cached_property
    def num_unique_words(self) -> int:
        """Distinct words."""
        words: set[str] = set()
        for sentence in self._seen():
            words.update(sentence.split())
        return len(words)

    @property
    def unknown_share(self) -> float:
        """Share of ``<UNK>`` among the validation targets."""
        return self.num_unknown / self.num_validation_targets

    @cached_property
    def overlap(self) -> int:
        """Validation sentences that are in train as well."""
        validation = set(self.corpus.validation)  # the smaller one
        shared = validation.intersection(self.corpus.train)
        return sum(sentence in shared for sentence in self.corpus.validation)

    def _seen(self) -> Iterator[str]:
        return chain(self.corpus.train, self.corpus.validation)

    def rows(self) -> dict[str, str]:
        """The whole card, a label and a value in each row."""
        corpus, lengths = self.corpus, self.lengths
        share = self.overlap / len(corpus.validation)
        rows = {
            "sentences": self._sentences(),
            "words": f"{self.num_words:,}",
            "unique words": f"{self.num_unique_words:,}",
            "vocabulary": f"{self.vocabulary:,} (train, with 4 specials)",
            "<UNK> in validation": f"{self.num_unknown:,} of {self.num_validation_targets:,}"
            f" targets ({self.unknown_share:.1%})",
            "words a sentence": f"{lengths.min()} to {lengths.max()},"
            f" mean {self.num_words / len(lengths):.2f}",
            "too long": self._too_long() or "none",
            "blank lines": f"{corpus.num_blank_lines:,}",
            "validation also in train": f"{self.overlap:,} sentences ({share:.1%})",
        }
        if corpus.grammar is not None:
            rows["entropy"] = f"{corpus.grammar.entropy():.3f} nats a sentence"
            if self.entropy_floor is not None:
                rows["entropy"] += f", {self.entropy_floor:.4f} a token"
        if self.oracle_loss is not None:
            rows["oracle, validation"] = f"{self.oracle_loss:.4f} nats a token"
        if self.test_oracle_loss is not None:
            shift = corpus.test_shift * len(corpus.test) / self.num_test_targets
            rows["oracle, test"] = f"{self.test_oracle_loss:.4f} nats a token"
            rows["test shift"] = f"{-shift:.1e} nats a token, for knowing what test leaves out"
        return rows | {"sha256": corpus.sha256}

    def summary(self) -> str:
        """The card in one line."""
        parts = [
            f"{self._sentences()} sentences",
            f"{self.num_words:,} words",
            f"vocabulary {self.vocabulary:,}",
            f"<UNK> {self.unknown_share:.1%} of validation targets",
            f"{self.overlap:,} validation sentences in train",
        ]
        if self.oracle_loss is not None:
            parts.append(f"oracle {self.oracle_loss:.4f}")
        if too_long := self._too_long():
            parts.append(f"too long: {too_long}")
        if self.corpus.num_blank_lines:
            parts.append(f"{self.corpus.num_blank_lines:,} blank lines")
        return f"{self.corpus.name}: " + ", ".join(parts)

    def _sentences(self) -> str:
        return " / ".join(f"{number:,} {split}" for split, number in self.num_sentences.items())

    def _too_long(self) -> str:
        return ", ".join(
            f"{number:,} {self.too_long_fate} in {split}"
            for split, number in self.num_too_long.items()
            if number
        )
