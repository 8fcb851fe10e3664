"""Corpora of sentences: read, tokenized with what the training split teaches, encoded."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from newllm.data.batching import BATCHINGS, EvaluationBatches, TrainingBatches
from newllm.data.cache import Arrays, Cache
from newllm.data.card import Card, Counts
from newllm.data.encoded import EncodedSplit
from newllm.data.source import Source
from newllm.data.sources.corpora import (
    NAMES,
    SPLITS,
    Corpus,
    build_corpus,
    read_text_corpus,
    text_digest,
)
from newllm.data.sources.grammar import Grammar
from newllm.data.sources.oracle import Oracle
from newllm.data.tokenizer import UNK, Tokenizer, kind_and_size_faults

TOO_LONG = ("error", "truncate", "drop")
LARGE_TEXT = 500_000  # bytes of a file from which on what is computed from it is kept
OPTIONS = {"corpus": NAMES, "batching": BATCHINGS, "too_long": TOO_LONG}


class SentenceSource(Source):
    """A corpus, tokenized with what its training split teaches, in batches of sentences.

    Args:
        corpus: one of `newllm.data.sources.corpora.NAMES`.
        order_seed: decides the order of the training batches and nothing else.
        batch_size: sentences in a training batch.
        batching: `shuffled` or `bucketed` (sentences of like length together).
        seed: redraws and splits the corpus anew; None gives the published corpus.
        directory: where `write` leaves the corpus's files for reading, and in its folder `cache`
            what was computed from a large text; None keeps nothing.
        tokenizer: `words` or `bpe`.
        vocabulary_size: the largest vocabulary, the four specials counted; None keeps all words.
        max_length: positions, that is `<BOS>` and the tokens after it but not `<EOS>`, that
            a sentence may take.
        train_sentences: only so many of the training sentences, the first; None takes all. The
            vocabulary stays that of all.
        validation_sentences: at most so many of the validation sentences, the first; None takes
            all. They are in random order, and model and references score the same ones.
        test_sentences: the same of the test sentences.
        too_long: what happens to a longer one. `truncate` cuts it, so that it has no `<EOS>`.
        path: the file of `text`, and of no other corpus.
        lowercase: whether text and prompts are lower-cased.
        validation_fraction: share of the sentences of `text` to validate on.
        test_fraction: share of the sentences of `text` to test on.

    Raises:
        ValueError: here, or in `setup` where only the text itself can tell.
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
        faults = _option_faults(corpus=corpus, batching=batching, too_long=too_long)
        at_least_one = {
            "batch_size": batch_size,
            "max_length": max_length,
            "train_sentences": 1 if train_sentences is None else train_sentences,
            "validation_sentences": 1 if validation_sentences is None else validation_sentences,
            "test_sentences": 1 if test_sentences is None else test_sentences,
        }
        faults += _number_faults(seed, order_seed, **at_least_one)
        faults += kind_and_size_faults(tokenizer, vocabulary_size)
        if corpus == "text" and not path:
            faults.append("data=text needs data.path=FILE")
        if corpus != "text" and path:
            faults.append(f"data.path={path} is used by data=text only, not by data={corpus}")
        if faults:
            raise ValueError("\n".join(faults))

        self.name, self.max_length = corpus, max_length
        self.num_too_long: dict[str, int] = {}
        self._seed, self._path = seed, Path(path) if path else None
        self._fractions = {
            "validation_fraction": validation_fraction,
            "test_fraction": test_fraction,
        }
        self._directory = None if directory is None else Path(directory)
        self._tokenizer_kind, self._vocabulary_size = tokenizer, vocabulary_size
        self._lowercase, self._too_long = lowercase, too_long
        self._num_sentences = {
            "train": train_sentences,
            "validation": validation_sentences,
            "test": test_sentences,
        }
        self._batch_size, self._batching, self._order_seed = batch_size, batching, order_seed
        self._cache = Cache(self._directory and self._directory / "cache")
        self._kept: dict[str, np.ndarray] = {}  # of splits with dropped sentences
        self._splits: dict[str, EncodedSplit] = {}
        self._oracle_losses: dict[str, float | None] = {}

    def setup(self) -> None:
        """Read the corpus, train the tokenizer on its training split and encode every split."""
        if self._splits:
            return
        tokens = self.cached("tokens", self._settings, self._tokens)
        self.tokenizer = Tokenizer.from_json(tokens["tokenizer"].tobytes().decode())
        self.vocabulary_size = self.tokenizer.size
        available, wanted = len(tokens["train_lengths"]), self._num_sentences["train"]
        if wanted is not None and wanted > available:
            raise ValueError(f"data.train_sentences={wanted}: {self.name} has {available:,}")
        splits = {}
        for name in SPLITS:
            length_N = tokens[f"{name}_lengths"][: self._num_sentences[name]]
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
        self.digest = self.card.sha256

    def write(self) -> None:
        """Leave the files of a corpus of this package in the directory, to be looked at.

        Of a large text, what was computed is left there for the next process.

        Raises:
            ValueError: the files of a corpus cannot be written.
        """
        if self._directory and not self._path:
            build_corpus(self.name, self._seed).write(self._directory)
        self._cache.write()

    @cached_property
    def is_large(self) -> bool:
        """Whether a user would have to wait for what is computed from the text."""
        return (
            self._path is not None
            and self._path.is_file()
            and self._path.stat().st_size >= LARGE_TEXT
        )

    def announce(self, stage: str) -> None:
        """Say what is about to run, if one has to wait for it."""
        if self.is_large:
            print(f"{stage} ...", file=sys.stderr, flush=True)

    def cached(
        self, name: str, follows_from: Mapping[str, Any], compute: Callable[[], Arrays]
    ) -> Arrays:
        """`Cache.get` of what was computed from this corpus; a small one is computed every time."""
        return self._cache.get(name, follows_from, compute) if self.is_large else compute()

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What the tokens follow from, beside the code."""
        return {
            "text": text_digest(self._path) if self._path else None,
            "seed": self._seed,
            "lowercase": self._lowercase,
            "tokenizer": self._tokenizer_kind,
            "vocabulary_size": self._vocabulary_size,
            **self._fractions,
        }

    @cached_property
    def _whole(self) -> Corpus:
        """The corpus with all of its sentences; of a large text, read only when it is needed."""
        if not self._path:
            return build_corpus(self.name, self._seed)
        self.announce(f"reading {self._path}")
        return read_text_corpus(
            self._path, seed=self._seed, lowercase=self._lowercase, **self._fractions
        )

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus, with as many sentences as were asked for."""
        whole, number = self._whole, self._num_sentences
        validation = whole.validation[: number["validation"]]
        return replace(
            whole,
            train=whole.train[: number["train"]],
            withheld=whole.train[len(whole.train[: number["train"]]) :],
            validation=validation,
            unscored=whole.validation[len(validation) :],
            test=whole.test[: number["test"]],
        )

    def _tokens(self) -> Arrays:
        """The tokenizer, and what it makes of each split: all ids, and how many a sentence has."""
        corpus = self._whole  # all training sentences decide on the vocabulary
        self.announce("training the tokenizer")
        tokenizer = Tokenizer.train(
            corpus.train, self._tokenizer_kind, self._vocabulary_size, self._lowercase
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
        is_too_long_N = length_N - 1 > self.max_length
        too_long = np.flatnonzero(is_too_long_N)
        self.num_too_long[split] = len(too_long)
        if not len(too_long):
            return EncodedSplit.from_flat(ids_S, length_N)
        if self._too_long == "error":
            raise ValueError(
                f"{self.corpus.location(split, too_long[0])} takes"
                f" {length_N[too_long[0]] - 1} positions, more than data.max_length="
                f"{self.max_length} ({len(too_long)} such in the {split} split): raise it, or set"
                " data.too_long=truncate or data.too_long=drop"
            )
        if self._too_long == "drop":
            self._kept[split] = np.flatnonzero(~is_too_long_N)
            is_kept_S = np.repeat(~is_too_long_N, length_N)
            return EncodedSplit.from_flat(ids_S[is_kept_S], length_N[~is_too_long_N])
        start_N = np.cumsum(length_N) - length_N
        is_kept_S = np.arange(len(ids_S)) - np.repeat(start_N, length_N) <= self.max_length
        return EncodedSplit.from_flat(ids_S[is_kept_S], np.minimum(length_N, self.max_length + 1))

    def split(self, name: str) -> EncodedSplit:
        """The encoded sentences of `train`, `validation` or `test`, without dropped ones."""
        return self._splits[name]

    def sentences(self, name: str) -> list[str]:
        """The same sentences as text; a truncated one appears in full."""
        whole = self.corpus.split(name)
        return [whole[i] for i in self._kept[name]] if name in self._kept else list(whole)

    @property
    def grammar(self) -> Grammar | None:
        """What the sentences were drawn from; None where there is none."""
        return None if self._path else self.corpus.grammar

    def oracle_loss(self, split: str) -> float | None:
        """The grammar's own mean -log p over a split's targets, in nats.

        It is what a model that knows the grammar scores; on a finite split it scatters around
        `entropy_floor`. The grammar is taken as it is: on the test split it could gain
        `Corpus.test_shift` nats a sentence by knowing what the split leaves out. None without a
        grammar, for an empty split, and for one with truncated sentences.
        """
        if split not in self._oracle_losses:
            losses = self.grammar_losses(split)
            self._oracle_losses[split] = (
                None if losses is None else math.fsum(losses) / self._splits[split].num_targets
            )
        return self._oracle_losses[split]

    def grammar_losses(self, name: str, grammar: Grammar | None = None) -> list[float] | None:
        """`Oracle.losses` of a grammar, the corpus's own or another; None as for `oracle_loss`."""
        oracle, split = self._oracle(grammar or self.grammar), self._splits[name]
        is_cut = self._too_long == "truncate" and self.num_too_long[name] > 0
        if oracle is None or not len(split) or is_cut:
            return None
        return oracle.losses(self.sentences(name), split)

    def next_token_distributions(self, name: str) -> list[list[dict[int, float]]] | None:
        """`Oracle.distributions`; None without a grammar, and where tokens are parts of words."""
        oracle, split = self._oracle(self.grammar), self._splits[name]
        if oracle is None or not oracle.reads_words or not len(split):
            return None
        return oracle.distributions(self.sentences(name), split)

    def _oracle(self, grammar: Grammar | None) -> Oracle | None:
        if grammar is None:
            return None
        return Oracle(grammar, self.tokenizer, self._tokenizer_kind == "words")

    @property
    def entropy_floor(self) -> float | None:
        """The expectation of `oracle_loss`: the grammar's entropy in nats a token.

        None without a grammar, and where the splits hold something else than what it makes: parts
        of words, `<UNK>`, or no long sentences.
        """
        is_changed = self._tokenizer_kind != "words" or any(self.num_too_long.values())
        if self.grammar is None or is_changed:
            return None
        if any(UNK in split.different_ids for split in self._splits.values()):
            return None
        return self.grammar.entropy_per_token()

    @cached_property
    def card(self) -> Card:
        """What there is to know of the data at a glance."""
        counted = self.cached(
            "counts", {**self._settings, "num_sentences": self._num_sentences}, self._counts
        )
        targets, num_test_targets = self.split("validation").targets, self.split("test").num_targets
        has_shift = self.grammar is not None and num_test_targets > 0
        shift = self.corpus.test_shift * len(self.corpus.test) if has_shift else 0.0
        return Card(
            name=self.name,
            counts=Counts(*counted["counts"].tolist()),
            num_sentences=dict(zip(SPLITS, counted["num_sentences"].tolist(), strict=True)),
            vocabulary=self.tokenizer.size,
            num_unknown=int((targets == UNK).sum()),
            num_validation_targets=len(targets),
            num_too_long=self.num_too_long,
            too_long_fate="dropped" if self._too_long == "drop" else "truncated",
            entropy=None if self.grammar is None else self.grammar.entropy(),
            entropy_floor=self.entropy_floor,
            oracle_loss=self.oracle_loss("validation"),
            test_oracle_loss=self.oracle_loss("test"),
            test_shift=shift / max(num_test_targets, 1),
            sha256=counted["sha256"].tobytes().decode(),
        )

    def _counts(self) -> Arrays:
        self.announce("counting words")
        corpus = self.corpus
        return {
            "counts": np.array(Counts.of(corpus)),
            "num_sentences": np.array([len(corpus.split(name)) for name in SPLITS]),
            "sha256": np.frombuffer(corpus.sha256.encode(), np.uint8),
        }

    def summary(self) -> str:
        """The card in one line."""
        return self.card.summary()


def _option_faults(**chosen: str) -> list[str]:
    return [
        f"data.{key}={value} is unknown: choose one of {list(OPTIONS[key])}"
        for key, value in chosen.items()
        if value not in OPTIONS[key]
    ]


def _number_faults(seed: int | None, order_seed: int, **at_least_one: int) -> list[str]:
    numbers = [("data.seed", seed or 0, 0), ("seed", order_seed, 0)]
    numbers += [(f"data.{key}", number, 1) for key, number in at_least_one.items()]
    return [
        f"{key}={number} must be at least {smallest}"
        for key, number, smallest in numbers
        if number < smallest
    ]
