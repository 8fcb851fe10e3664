"""Corpora of sentences, tokenized with the vocabulary of their training split."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from newllm.data.batching import BATCHINGS, EvaluationBatches, TrainingBatches
from newllm.data.cache import Arrays, Cache
from newllm.data.encoded import EncodedSplit
from newllm.data.source import Source
from newllm.data.sources.corpora import (
    NAMES,
    SPLITS,
    Corpus,
    Counts,
    build_corpus,
    read_text_corpus,
    text_digest,
)
from newllm.data.sources.grammar import Grammar
from newllm.data.sources.oracle import distributions, word_losses
from newllm.data.tokenizer import UNK, Tokenizer, kind_and_size_faults

TOO_LONG = ("error", "truncate", "drop")
LARGE_TEXT = 500_000  # bytes of a file from which on computed arrays are cached


class SentenceSource(Source):
    """A corpus in batches of sentences.

    Args:
        corpus: one of `newllm.data.sources.corpora.NAMES`.
        order_seed: decides the order of the training batches and nothing else.
        batch_size: sentences in a training batch.
        batching: `shuffled` or `bucketed` (sentences of similar length together).
        seed: redraws and splits the corpus anew. None gives the published corpus.
        directory: where `write` leaves the files of the corpus and, in the folder `cache`, arrays
            computed from a large text. None writes nothing.
        tokenizer: `words` or `bpe`.
        vocabulary_size: the largest vocabulary, the four specials counted. None keeps all words.
        max_length: positions that a sentence may take: `<BOS>` and its tokens, without `<EOS>`.
        too_long: what happens to a longer sentence. `truncate` cuts it and its `<EOS>` off.
        train_sentences: keep only this many training sentences. The vocabulary is still that of
            all training sentences. None keeps all.
        validation_sentences: keep at most this many validation sentences. None keeps all.
        test_sentences: keep at most this many test sentences. None keeps all.
        path: the file of `text`.
        lowercase: whether text and prompts are lower-cased.
        validation_fraction: share of the sentences of `text` to validate on.
        test_fraction: share of the sentences of `text` to test on.

    Raises:
        ValueError: an argument is out of range; `setup` raises it for faults of the text.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        corpus: str,
        order_seed: int,
        batch_size: int = 16,
        batching: str = "shuffled",
        seed: int | None = None,
        directory: str | None = "data",
        tokenizer: str = "words",
        vocabulary_size: int | None = None,
        max_length: int = 32,
        too_long: str = "error",
        train_sentences: int | None = None,
        validation_sentences: int | None = None,
        test_sentences: int | None = None,
        path: str | None = None,
        lowercase: bool = True,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        self._limits = {
            "train": train_sentences,
            "validation": validation_sentences,
            "test": test_sentences,
        }
        choices = {
            "corpus": (corpus, NAMES),
            "batching": (batching, BATCHINGS),
            "too_long": (too_long, TOO_LONG),
        }
        faults = [
            f"data.{key}={value}: no such option; options: {', '.join(known)}"
            for key, (value, known) in choices.items()
            if value not in known
        ]
        numbers = [("seed", order_seed, 0), ("data.seed", 0 if seed is None else seed, 0)]
        numbers += [("data.batch_size", batch_size, 1), ("data.max_length", max_length, 1)]
        numbers += [
            (f"data.{split}_sentences", limit, 1)
            for split, limit in self._limits.items()
            if limit is not None
        ]
        faults += [
            f"{key}={number}: must be at least {smallest}"
            for key, number, smallest in numbers
            if number < smallest
        ]
        faults += kind_and_size_faults(tokenizer, vocabulary_size)
        if corpus == "text" and not path:
            faults.append("data=text: needs data.path=FILE")
        if corpus != "text" and path:
            faults.append(f"data.path={path}: is used by data=text only, not by data={corpus}")
        if faults:
            raise ValueError("\n".join(faults))

        self.name, self.max_length = corpus, max_length
        self.num_sentences: dict[str, int] = {}  # of each split, dropped ones counted
        self.num_too_long: dict[str, int] = {}
        self._path = Path(path) if path else None
        self._reading: dict[str, Any] = {
            "seed": seed,
            "lowercase": lowercase,
            "validation_fraction": validation_fraction,
            "test_fraction": test_fraction,
        }
        self._tokenizer_kind, self._vocabulary_size = tokenizer, vocabulary_size
        self._too_long = too_long
        self._batch_size, self._batching, self._order_seed = batch_size, batching, order_seed
        self._directory = None if directory is None else Path(directory)
        self._is_large = False
        self.cache = Cache(None)
        self._kept: dict[str, np.ndarray] = {}  # indices, for splits with dropped sentences
        self._splits: dict[str, EncodedSplit] = {}
        self._oracle_losses: dict[str, float | None] = {}

    def setup(self) -> None:
        """Read the corpus, train the tokenizer on its training split and encode every split."""
        if self._splits:
            return
        settings = self._text_settings  # raises for a file that cannot be read
        self._is_large = self._path is not None and self._path.stat().st_size >= LARGE_TEXT
        if self._directory and self._is_large:
            self.cache = Cache(self._directory / "cache")
        tokens = self.cache.get("tokens", settings, self._tokens)
        self.tokenizer = Tokenizer.from_json(tokens["tokenizer"].tobytes().decode())
        self.vocabulary_size = self.tokenizer.size
        available, wanted = len(tokens["train_lengths"]), self._limits["train"]
        if wanted is not None and wanted > available:
            raise ValueError(f"data.train_sentences={wanted}: {self.name} has {available:,}")
        splits = {}
        for name in SPLITS:
            length_N = tokens[f"{name}_lengths"][: self._limits[name]]
            self.num_sentences[name] = len(length_N)
            splits[name] = self._fit(name, tokens[f"{name}_ids"][: length_N.sum()], length_N)
        for name in ("train", "validation"):
            if not len(splits[name]):
                raise ValueError(
                    f"data.max_length={self.max_length} with data.too_long=drop leaves no"
                    f" sentence in the {name} split"
                )
        self._splits = splits
        self.train = TrainingBatches(
            splits["train"], self._batch_size, self._batching, self._order_seed
        )
        self.evaluation = {name: EvaluationBatches(splits[name]) for name in ("validation", "test")}
        counted = self.cache.get("counts", self.settings, self._counted)
        self.counts = Counts(*counted["counts"].tolist())
        self.digest = counted["sha256"].tobytes().decode()

    def write(self) -> None:
        """Write the files of a corpus of this package, or the cached arrays of a large text.

        Raises:
            ValueError: the files of a corpus cannot be written.
        """
        if self._directory and not self._path:
            build_corpus(self.name, self._reading["seed"]).write(self._directory)
        self.cache.write()

    def announce(self, stage: str) -> None:
        """Print what is about to run if it takes a while."""
        if self._is_large:
            print(f"{stage} ...", file=sys.stderr, flush=True)

    @cached_property
    def _text_settings(self) -> dict[str, Any]:
        """Everything that the tokens depend on beside the code."""
        return {
            "text": text_digest(self._path) if self._path else None,
            "tokenizer": self._tokenizer_kind,
            "vocabulary_size": self._vocabulary_size,
            **self._reading,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the encoded splits depend on beside the code, for the cache."""
        limits = {"max_length": self.max_length, "too_long": self._too_long, **self._limits}
        return self._text_settings | limits

    @cached_property
    def _whole(self) -> Corpus:
        """The corpus without limits. A large text is only read when this is needed."""
        if not self._path:
            return build_corpus(self.name, self._reading["seed"])
        self.announce(f"reading {self._path}")
        return read_text_corpus(self._path, **self._reading)

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus, limited to the numbers of sentences that were asked for."""
        whole, limits = self._whole, self._limits
        train, validation = whole.train[: limits["train"]], whole.validation[: limits["validation"]]
        return replace(
            whole,
            train=train,
            validation=validation,
            test=whole.test[: limits["test"]],
            unused=[*whole.train[len(train) :], *whole.validation[len(validation) :]],
        )

    def _tokens(self) -> Arrays:
        """The tokenizer, and for each split all ids end to end and the length of each sentence."""
        corpus = self._whole  # all training sentences decide on the vocabulary
        self.announce("training the tokenizer")
        tokenizer = Tokenizer.train(
            corpus.train, self._tokenizer_kind, self._vocabulary_size, self._reading["lowercase"]
        )
        self.announce("encoding the text")
        found = {"tokenizer": np.frombuffer(tokenizer.to_json().encode(), np.uint8)}
        smallest = np.min_scalar_type(tokenizer.size)
        for name in SPLITS:
            ids_S, length_N = tokenizer.encode_all(corpus.split(name))
            found |= {f"{name}_ids": ids_S.astype(smallest), f"{name}_lengths": length_N}
        return found

    def _fit(self, split: str, ids_S: np.ndarray, length_N: np.ndarray) -> EncodedSplit:
        """A split whose sentences take at most `max_length` positions."""
        fits_N = length_N <= self.max_length + 1
        too_long = np.flatnonzero(~fits_N)
        self.num_too_long[split] = len(too_long)
        if not len(too_long):
            return EncodedSplit(ids_S, length_N)
        if self._too_long == "error":
            raise ValueError(
                f"{self.corpus.location(split, too_long[0])} takes"
                f" {length_N[too_long[0]] - 1} positions, more than data.max_length="
                f"{self.max_length} ({len(too_long)} such in the {split} split): raise it, or set"
                " data.too_long=truncate or data.too_long=drop"
            )
        if self._too_long == "drop":
            self._kept[split] = np.flatnonzero(fits_N)
            return EncodedSplit(ids_S[np.repeat(fits_N, length_N)], length_N[fits_N])
        start_N = np.cumsum(length_N) - length_N
        is_kept_S = np.arange(len(ids_S)) - np.repeat(start_N, length_N) <= self.max_length
        return EncodedSplit(ids_S[is_kept_S], np.minimum(length_N, self.max_length + 1))

    def split(self, name: str) -> EncodedSplit:
        """The encoded sentences of `train`, `validation` or `test`, without dropped ones."""
        return self._splits[name]

    def sentences(self, name: str) -> Sequence[str]:
        """The same sentences as text. A truncated one appears in full."""
        whole = self.corpus.split(name)
        return [whole[i] for i in self._kept[name]] if name in self._kept else whole

    @property
    def grammar(self) -> Grammar | None:
        """The distribution that the sentences were drawn from, if there is one."""
        return None if self._path else self._whole.grammar

    def oracle_loss(self, split: str) -> float | None:
        """The mean -log p of a split's targets under the grammar, in nats per token.

        On a finite split it scatters around `entropy_floor`. On the test split,
        `Corpus.test_shift` could still be gained. None as for `grammar_losses`.
        """
        if split not in self._oracle_losses:
            losses = self.grammar_losses(split)
            self._oracle_losses[split] = (
                None if losses is None else math.fsum(losses) / self._splits[split].num_targets
            )
        return self._oracle_losses[split]

    def grammar_losses(self, name: str, grammar: Grammar | None = None) -> list[float] | None:
        """The loss of each word and sentence end of a split under a grammar, in nats.

        These are the targets of the split, unless tokens are parts of words.

        Args:
            name: of the split.
            grammar: None for that of the corpus.

        Returns:
            None without a grammar, for an empty split, and for one with truncated sentences.
        """
        grammar, split = grammar or self.grammar, self._splits[name]
        is_cut = self._too_long == "truncate" and self.num_too_long[name] > 0
        if grammar is None or not len(split) or is_cut:
            return None
        unknown_in = split if self._tokenizer_kind == "words" else None
        return word_losses(grammar, self.tokenizer, self.sentences(name), unknown_in)

    def next_token_distributions(self, name: str) -> list[list[dict[int, float]]] | None:
        """The grammar's probability of each next token, by sentence and position.

        None without a grammar, for an empty split, and where tokens are parts of words.
        """
        grammar, split = self.grammar, self._splits[name]
        if grammar is None or self._tokenizer_kind != "words" or not len(split):
            return None
        return distributions(grammar, self.tokenizer, self.sentences(name), split)

    @property
    def entropy_floor(self) -> float | None:
        """The expectation of `oracle_loss`: the entropy of the grammar in nats per token.

        None without a grammar, and where the splits do not follow it: with parts of words, `<UNK>`
        or a limit to their length.
        """
        is_changed = self._tokenizer_kind != "words" or any(self.num_too_long.values())
        if self.grammar is None or is_changed:
            return None
        if any(UNK in split.different_ids for split in self._splits.values()):
            return None
        return self.grammar.entropy_per_token()

    def _counted(self) -> Arrays:
        self.announce("counting words")
        return {
            "counts": np.array(self.corpus.count()),
            "sha256": np.frombuffer(self.corpus.sha256.encode(), np.uint8),
        }

    @cached_property
    def num_unknown(self) -> int:
        """`<UNK>` among the validation targets."""
        return int((self.split("validation").targets == UNK).sum())

    @property
    def unknown_share(self) -> float:
        """Share of `<UNK>` among the validation targets."""
        return self.num_unknown / self.split("validation").num_targets

    @property
    def overlap_share(self) -> float:
        """Share of the validation sentences that are in the training split as well."""
        return self.counts.overlap / self.num_sentences["validation"]

    def too_long(self) -> str:
        """The numbers of sentences that were dropped or truncated, in words."""
        fate = "dropped" if self._too_long == "drop" else "truncated"
        numbers = self.num_too_long.items()
        return ", ".join(f"{number:,} {fate} in {split}" for split, number in numbers if number)

    def summary(self) -> str:
        """The most important figures of the data card, in one line."""
        oracle, blank_lines = self.oracle_loss("validation"), self.counts.num_blank_lines
        sentences = " / ".join(f"{self.num_sentences[split]:,} {split}" for split in SPLITS)
        parts = [
            f"{sentences} sentences",
            f"{self.counts.num_words:,} words",
            f"vocabulary {self.vocabulary_size:,}",
            f"<UNK> {self.unknown_share:.1%} of validation targets",
            f"{self.counts.overlap:,} validation sentences in train",
            "" if oracle is None else f"oracle {oracle:.4f}",
            f"too long: {self.too_long()}" if self.too_long() else "",
            f"{blank_lines:,} blank lines" if blank_lines else "",
        ]
        return f"{self.name}: " + ", ".join(filter(None, parts))
