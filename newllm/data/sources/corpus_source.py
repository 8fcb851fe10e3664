"""Corpora of text, tokenized with the vocabulary of their training split."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from newllm.config.faults import no_such_option, raise_faults, too_small
from newllm.data.batching import BATCHINGS, EvaluationBatches, TrainingBatches
from newllm.data.cache import Arrays, Cache
from newllm.data.card import card
from newllm.data.encoded import EncodedSplit
from newllm.data.source import Source, Split
from newllm.data.sources.corpora import SPLITS, Corpus, Counts
from newllm.data.streaming import START_STATES, EvaluationStream, TrainingStream
from newllm.data.tokenizer import UNK, Tokenizer, kind_and_size_faults

TOO_LONG = ("error", "truncate", "drop", "chunk")
FEEDS = ("rows", "stream")
EXACT_METRICS = ("loss", "perplexity", "accuracy", "bits_per_byte")


class CorpusSource(Source):
    """A corpus in batches of rows: sentences, chunks of documents, or pairs.

    Each row starts from a fresh state, that of a later chunk of a document as well, unless the feed
    is a stream. Of a pair of prompt and response, only the response is scored.

    A subclass reads the corpus. It says what the text depends on, and whether it takes long.

    Args:
        name: of the corpus.
        unit: what its sequences are called: `sentences`, which are lines of words, `pairs`, or
            `documents` and other texts.
        lowercase: whether text and prompts are lower-cased.
        faults: of the settings of the subclass, raised with the others.
        order_seed: decides the order of the training batches and nothing else.
        batch_size: rows in a training batch.
        batching: `shuffled` or `bucketed` (sentences of similar length together).
        directory: where `write` leaves the files of the corpus and, in the folder `cache`, arrays
            computed from a large text. None writes nothing.
        tokenizer: `words`, `bpe` or `bytes`. None takes `words` for sentences and `bytes` for other
            units.
        vocabulary_size: the largest vocabulary, the four specials counted. None keeps all words.
        max_length: positions that a row may take: `<BOS>` and its tokens, without `<EOS>`. None
            takes 32 for sentences and 256 for other units.
        too_long: what happens to a longer sequence. `truncate` cuts it and its `<EOS>` off, `chunk`
            makes several rows of it and loses no token. None takes `error` for sentences and pairs
            and `chunk` for other units.
        train_sentences: keep only this many training sequences. The vocabulary is still that of
            all training sequences. None keeps all.
        validation_sentences: keep at most this many validation sequences. None keeps all.
        test_sentences: keep at most this many test sequences. None keeps all.
        feed: what a row of a batch is: `rows` of at most `max_length` positions, in random order,
            or `stream`: the next window of a stream of whole sequences, end to end.
        tbptt_steps: tokens of a window. None takes `max_length`.
        start_state: the state that a training window starts from: `kept`, `zero` or `drawn`
            (`TrainingStream`). None takes `kept`.

    Raises:
        ValueError: an argument is out of range; `setup` raises it for faults of the text.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        name: str,
        unit: str,
        lowercase: bool,
        faults: Iterable[str],
        /,
        order_seed: int,
        batch_size: int = 16,
        batching: str = "shuffled",
        directory: str | None = "data",
        tokenizer: str | None = None,
        vocabulary_size: int | None = None,
        max_length: int | None = None,
        too_long: str | None = None,
        train_sentences: int | None = None,
        validation_sentences: int | None = None,
        test_sentences: int | None = None,
        feed: str = "rows",
        tbptt_steps: int | None = None,
        start_state: str | None = None,
    ) -> None:
        is_of_lines, is_of_pairs = unit == "sentences", unit == "pairs"
        tokenizer = tokenizer or ("words" if is_of_lines else "bytes")
        cuts = feed == "stream" or not (is_of_lines or is_of_pairs)
        too_long = too_long or ("chunk" if cuts else "error")
        max_length = (32 if is_of_lines else 256) if max_length is None else max_length
        self._limits = {
            "train": train_sentences,
            "validation": validation_sentences,
            "test": test_sentences,
        }
        faults = [*faults, *no_such_option("data", BATCHINGS, batching=batching)]
        faults += no_such_option("data", TOO_LONG, too_long=too_long)
        faults += _feed_faults(feed, tbptt_steps, start_state, too_long, batching, is_of_pairs)
        if order_seed < 0:
            faults.append(f"seed={order_seed}: must be at least 0")
        limits = {f"{split}_sentences": limit for split, limit in self._limits.items()}
        faults += too_small("data", 1, batch_size=batch_size, max_length=max_length, **limits)
        faults += kind_and_size_faults(tokenizer, vocabulary_size)
        if is_of_pairs and too_long not in ("error", "drop"):
            faults.append(f"data.too_long={too_long}: a pair cannot be cut; choose error or drop")
        if is_of_pairs and tokenizer == "words":
            faults.append("data.tokenizer=words: pairs need bpe or bytes")
        raise_faults(faults)

        self.name, self.unit, self.max_length = name, unit, max_length
        self.num_sentences: dict[str, int] = {}  # of each split, dropped ones counted
        self.num_too_long: dict[str, int] = {}
        self.num_lost_tokens = 0  # that too long sequences cost all splits
        self._num_tokens = 0
        self._tokenizer_kind, self._vocabulary_size = tokenizer, vocabulary_size
        self._lowercase, self._too_long = lowercase, too_long
        self._batch_size, self._batching, self._order_seed = batch_size, batching, order_seed
        self._is_stream = feed == "stream"
        self._num_steps, self._start_state = tbptt_steps or max_length, start_state or "kept"
        self._directory = None if directory is None else Path(directory)
        self.cache = Cache(None)
        self._kept: dict[str, np.ndarray] = {}  # indices, for splits with dropped sentences
        self._splits: dict[str, EncodedSplit] = {}

    @abstractmethod
    def read(self) -> Corpus:
        """Read the corpus, without the limits to its sequences."""

    @abstractmethod
    def text_settings(self) -> dict[str, Any]:
        """Everything that the text of the corpus depends on beside the code, as plain values.

        Raises:
            ValueError: the text cannot be read.
        """

    def is_large(self) -> bool:
        """Whether what is computed from the text is cached, and announced."""
        return False

    def setup(self) -> None:
        """Read the corpus, train the tokenizer on its training split and encode every split."""
        if self._splits:
            return
        settings = self._settings  # raises for a file that cannot be read
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
            self.num_sentences[name] = number = len(length_N)
            ids_S, unscored_N = tokens[f"{name}_ids"], tokens.get(f"{name}_unscored")
            unscored_N = None if unscored_N is None else unscored_N[:number]
            splits[name] = self._fit(name, ids_S[: length_N.sum()], length_N, unscored_N)
        for name in ("train", "validation"):
            if not len(splits[name]):
                raise ValueError(
                    f"data.max_length={self.max_length} with data.too_long=drop leaves no"
                    f" {self.unit.removesuffix('s')} in the {name} split"
                )
        self._splits = splits
        self.train = self._training_batches(splits["train"])
        self.evaluation = {
            name: EvaluationStream(split, self._num_steps)
            if self._is_stream
            else EvaluationBatches(split)
            for name, split in splits.items()
            if name != "train"
        }
        if self.tokenizer.is_exact:
            for batches in (self.train, *self.evaluation.values()):
                batches.metrics = EXACT_METRICS
        counted = self.cached("counts", self._counted)
        self.counts = Counts(*counted["counts"].tolist())
        self.digest = counted["sha256"].tobytes().decode()

    def _training_batches(self, split: EncodedSplit) -> Split:
        size, seed = self._batch_size, self._order_seed
        if self._is_stream:
            return TrainingStream(split, size, self._num_steps, seed, self._start_state)
        return TrainingBatches(split, size, self._batching, seed)

    def write(self) -> None:
        """Write the cached arrays of a large text."""
        self.cache.write()

    def announce(self, stage: str) -> None:
        if self._is_large:
            print(f"{stage} ...", file=sys.stderr, flush=True)

    @cached_property
    def _is_large(self) -> bool:
        return self.is_large()

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """Everything that the tokens depend on beside the code."""
        return {
            "tokenizer": self._tokenizer_kind,
            "vocabulary_size": self._vocabulary_size,
            "lowercase": self._lowercase,
            **self.text_settings(),
        }

    def cached(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        too_long = "stream" if self._is_stream else self._too_long
        limits = {"max_length": self.max_length, "too_long": too_long, **self._limits}
        return self.cache.get(name, self._settings | limits, compute)

    @cached_property
    def _whole(self) -> Corpus:
        """The corpus without limits. A large text is only read when this is needed."""
        return self.read()

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
            corpus.whole("train"),
            self._tokenizer_kind,
            self._vocabulary_size,
            self._lowercase,
            is_exact=self.unit != "sentences",
            is_of_pairs=self.unit == "pairs",
        )
        self.announce("encoding the text")
        found = {"tokenizer": np.frombuffer(tokenizer.to_json().encode(), np.uint8)}
        smallest = np.min_scalar_type(tokenizer.size)
        for name in SPLITS:
            if corpus.prompts:
                prompts, responses = corpus.prompts[name], corpus.split(name)
                ids_S, length_N, found[f"{name}_unscored"] = tokenizer.encode_pairs(
                    prompts, responses
                )
            else:
                ids_S, length_N = tokenizer.encode_all(corpus.split(name))
            found |= {f"{name}_ids": ids_S.astype(smallest), f"{name}_lengths": length_N}
        return found

    def _fit(
        self,
        split: str,
        ids_S: np.ndarray,
        length_N: np.ndarray,
        unscored_N: np.ndarray | None,
    ) -> EncodedSplit:
        """A split whose rows take at most `max_length` positions."""
        self._num_tokens += len(ids_S)
        if self._too_long == "chunk":
            self.num_too_long[split] = 0
            return EncodedSplit(ids_S, length_N, None if self._is_stream else self.max_length)
        fits_N = length_N <= self.max_length + 1
        too_long = np.flatnonzero(~fits_N)
        self.num_too_long[split] = len(too_long)
        if not len(too_long):
            return EncodedSplit(ids_S, length_N, num_unscored_D=unscored_N)
        if self._too_long == "error":
            raise ValueError(
                f"{self.corpus.location(split, too_long[0])} takes"
                f" {length_N[too_long[0]] - 1} positions, more than data.max_length="
                f"{self.max_length} ({len(too_long)} such in the {split} split): raise it, or set"
                f" data.too_long={'drop' if self.unit == 'pairs' else 'truncate, drop or chunk'}"
            )
        if self._too_long == "drop":
            self._kept[split] = np.flatnonzero(fits_N)
            self.num_lost_tokens += int(length_N[~fits_N].sum())
            unscored_N = None if unscored_N is None else unscored_N[fits_N]
            ids_S = ids_S[np.repeat(fits_N, length_N)]
            return EncodedSplit(ids_S, length_N[fits_N], num_unscored_D=unscored_N)
        start_N = np.cumsum(length_N) - length_N
        is_kept_S = np.arange(len(ids_S)) - np.repeat(start_N, length_N) <= self.max_length
        self.num_lost_tokens += int((~is_kept_S).sum())
        return EncodedSplit(ids_S[is_kept_S], np.minimum(length_N, self.max_length + 1))

    def encoded(self, split: str) -> EncodedSplit:
        """The sequences of `train`, `validation` or `test`, without dropped ones."""
        return self._splits[split]

    def texts(self, split: str) -> Sequence[str] | None:
        if self.unit == "pairs":
            return None  # a response alone is harder than one after its prompt
        is_cut = self._too_long == "truncate" and self.num_too_long[split] > 0
        return self.sentences(split) if self.tokenizer.is_exact and not is_cut else None

    def sentences(self, name: str) -> Sequence[str]:
        """The same sequences as text. A truncated one appears in full."""
        whole = self.corpus.split(name)
        return [whole[i] for i in self._kept[name]] if name in self._kept else whole

    def _counted(self) -> Arrays:
        self.announce("counting words")
        return {
            "counts": np.array(self.corpus.count()),
            "sha256": np.frombuffer(self.corpus.sha256.encode(), np.uint8),
        }

    @cached_property
    def num_unknown(self) -> int:
        """`<UNK>` among the validation targets."""
        return int((self.encoded("validation").targets == UNK).sum())

    @property
    def unknown_share(self) -> float:
        """Share of `<UNK>` among the validation targets."""
        return self.num_unknown / self.encoded("validation").num_targets

    def num_incomplete(self) -> Mapping[str, int]:
        return self.num_too_long

    @property
    def overlap_share(self) -> float:
        return self.counts.overlap / self.num_sentences["validation"]

    def too_long(self) -> str:
        """The numbers of sequences that were dropped or truncated, in words."""
        if self._too_long == "chunk":
            return ""
        fate = "dropped" if self._too_long == "drop" else "truncated"
        numbers = self.num_too_long.items()
        told = ", ".join(f"{number:,} {fate} in {split}" for split, number in numbers if number)
        share = self.num_lost_tokens / self._num_tokens
        return f"{told} ({share:.1%} of all tokens are lost)" if told else ""

    def card(self) -> dict[str, str]:
        return card(self)

    def summary(self) -> str:
        """The most important figures of the data card, in one line."""
        oracle, blank_lines = self.oracle_loss("validation"), self.counts.num_blank_lines
        sentences = " / ".join(f"{self.num_sentences[split]:,} {split}" for split in SPLITS)
        parts = [
            f"{sentences} {self.unit}",
            f"{self.counts.num_words:,} words",
            f"vocabulary {self.vocabulary_size:,}",
            f"<UNK> {self.unknown_share:.1%} of validation targets",
            f"{self.counts.overlap:,} validation {self.unit} in train",
            "" if oracle is None else f"oracle {oracle:.4f}",
            f"too long: {self.too_long()}" if self.too_long() else "",
            f"{blank_lines:,} blank lines" if blank_lines else "",
        ]
        return f"{self.name}: " + ", ".join(filter(None, parts))


def _feed_faults(
    feed: str,
    tbptt_steps: int | None,
    start_state: str | None,
    too_long: str,
    batching: str,
    is_of_pairs: bool,
) -> Iterator[str]:
    """The faults of the settings of a stream."""
    yield from no_such_option("data", FEEDS, feed=feed)
    if feed == "stream":
        yield from too_small("data", 1, tbptt_steps=tbptt_steps)
        if start_state is not None:
            yield from no_such_option("data", START_STATES, start_state=start_state)
        if batching != "shuffled":
            yield f"data.batching={batching}: a stream reads documents in random order; remove it"
        if is_of_pairs:
            yield "data.feed=stream: pairs are read one by one; choose rows"
        elif too_long != "chunk":
            yield f"data.too_long={too_long}: a stream reads sequences of any length; remove it"
        return
    for name, value in {"tbptt_steps": tbptt_steps, "start_state": start_state}.items():
        if value is not None:
            yield f"data.{name}={value}: is a setting of streams; set data.feed=stream"
