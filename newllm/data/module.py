"""The data module: from a corpus's name to batches, the oracle and the data card."""

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningDataModule
from torch import Tensor

from newllm.data.batching import BATCHINGS, EncodedSplit, EvaluationBatches, TrainingBatches
from newllm.data.cache import Arrays, Cache
from newllm.data.card import Card
from newllm.data.memory import release_free_memory
from newllm.data.sources.corpora import NAMES, SPLITS, Corpus, build_corpus, read_text_corpus
from newllm.data.sources.grammar import END, Grammar
from newllm.data.tokenizer import EOS, UNK, Tokenizer, kind_and_size_faults

TOO_LONG = ("error", "truncate", "drop")
LARGE_TEXT = 500_000  # bytes of a file
OPTIONS = {"corpus": NAMES, "batching": BATCHINGS, "too_long": TOO_LONG}


class CorpusDataModule(LightningDataModule):
    """A corpus, tokenized with what its training part teaches, in batches.

    Args:
        corpus: one of `newllm.data.sources.corpora.NAMES`.
        order_seed: decides the order of the training batches and nothing else.
        batch_size: sentences in a training batch.
        batching: ``shuffled`` or ``bucketed`` (sentences of like length together).
        seed: redraws and splits the corpus anew; None gives the published corpus.
        directory: where `write` leaves the corpus's files for reading, and in its folder ``cache``
            what was computed from a large text; None keeps nothing.
        tokenizer: ``words`` or ``bpe``.
        vocabulary_size: the largest vocabulary, the four specials counted; None keeps all words.
        max_length: positions, that is ``<BOS>`` and the tokens after it but not ``<EOS>``, that
            a sentence may take.
        train_sentences: only so many of the training sentences, the first; None takes all. The
            vocabulary stays that of all.
        validation_sentences: at most so many of the validation sentences, the first; None takes
            all. They are in random order, and model and references score the same ones.
        test_sentences: the same of the test sentences.
        too_long: what happens to a longer one. ``truncate`` cuts it, so that it has no ``<EOS>``.
        path: the file of ``text``, and of no other corpus.
        lowercase: whether text and prompts are lower-cased.
        validation_fraction: share of the sentences of ``text`` to validate on.
        test_fraction: share of the sentences of ``text`` to test on.

    Raises:
        ValueError: here, or in `setup` where only the text itself can tell.
    """

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
        super().__init__()
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
            faults.append(f"data.path={path} is read by data=text only, not by data={corpus}")
        if faults:
            raise ValueError("\n".join(faults))

        self.max_length = max_length
        self.steps_per_epoch = 0
        self.num_too_long: dict[str, int] = {}
        self._name, self._seed, self._path = corpus, seed, Path(path) if path else None
        self._fractions = {
            "validation_fraction": validation_fraction,
            "test_fraction": test_fraction,
        }
        self._directory = None if directory is None else Path(directory)
        self._tokenizer_kind, self._vocabulary_size = tokenizer, vocabulary_size
        self._lowercase, self._too_long = lowercase, too_long
        self._train_sentences = train_sentences
        self._validation_sentences, self._test_sentences = validation_sentences, test_sentences
        self._batch_size, self._batching, self._order_seed = batch_size, batching, order_seed
        self._cache = Cache(self._directory and self._directory / "cache")
        self._kept: dict[str, np.ndarray] = {}  # of splits with dropped sentences
        self._splits: dict[str, EncodedSplit] = {}
        self._oracle_losses: dict[str, float | None] = {}
        self._training: TrainingBatches | None = None
        self._place: dict[str, int] | None = None  # in the training data, where a run goes on

    def setup(self, stage: str | None = None) -> None:
        """Reads the corpus, trains the tokenizer on its training part and encodes every split.

        A second call does nothing; ``stage`` makes no difference. Nothing is written.
        """
        if self._splits:
            return
        whole = self._read_corpus()
        tokens = self.cached(
            "tokens", self._tokens_follow_from(whole), partial(self._tokens, whole)
        )
        self.tokenizer = Tokenizer.from_json(tokens["tokenizer"].tobytes().decode())
        self.corpus = self._shortened(whole)
        splits = {}
        for split in SPLITS:
            length_N = tokens[f"{split}_lengths"][: len(self.corpus.split(split))]
            ids_S = tokens[f"{split}_ids"][: length_N.sum()]
            splits[split] = self._fit(split, ids_S, length_N)
        for split in ("train", "validation"):
            if not len(splits[split]):
                raise ValueError(
                    f"data.max_length={self.max_length} with data.too_long=drop leaves no"
                    f" sentence in the {split} split"
                )
        self._splits = splits
        del tokens
        if self.is_large:
            release_free_memory()
        self.steps_per_epoch = -(-len(splits["train"]) // self._batch_size)

    def write(self) -> None:
        """Leaves the files of a corpus of this package in the directory, to be looked at.

        Of a large text, what was computed is left there for the next process.

        Raises:
            ValueError: the files of a corpus cannot be written.
        """
        if self._directory and not self._path:
            build_corpus(self._name, self._seed).write(self._directory)
        self._cache.write()
        if self.is_large:
            release_free_memory()

    @cached_property
    def is_large(self) -> bool:
        """Whether a user would have to wait for what is computed from the text."""
        return self._path is not None and self._path.stat().st_size >= LARGE_TEXT

    def announce(self, stage: str) -> None:
        """Says what is about to run, if one has to wait for it."""
        if self.is_large:
            print(f"{stage} ...", file=sys.stderr, flush=True)

    def cached(
        self, name: str, follows_from: Mapping[str, Any], compute: Callable[[], Arrays]
    ) -> Arrays:
        """`Cache.get` of what was computed from this corpus; a small one is computed every time."""
        if not self.is_large:
            return compute()
        arrays = self._cache.get(name, follows_from, compute)
        release_free_memory()
        return arrays

    def _read_corpus(self) -> Corpus:
        if not self._path:
            return build_corpus(self._name, self._seed)
        if self._path.is_file():
            self.announce(f"reading {self._path}")
        return read_text_corpus(
            self._path, seed=self._seed, lowercase=self._lowercase, **self._fractions
        )

    def _tokens_follow_from(self, corpus: Corpus) -> dict[str, Any]:
        return {
            "text": corpus.path_sha256,
            "seed": self._seed,
            "lowercase": self._lowercase,
            "tokenizer": self._tokenizer_kind,
            "vocabulary_size": self._vocabulary_size,
            **self._fractions,
        }

    def _tokens(self, corpus: Corpus) -> Arrays:
        """The tokenizer, and what it makes of each split: all ids, and how many a sentence has."""
        # All training sentences decide on the vocabulary, so that losses can be compared.
        self.announce("training the tokenizer")
        tokenizer = Tokenizer.train(
            corpus.train, self._tokenizer_kind, self._vocabulary_size, self._lowercase
        )
        self.announce("encoding the text")
        found = {"tokenizer": np.frombuffer(tokenizer.to_json().encode(), np.uint8)}
        for split in SPLITS:
            ids_S, length_N = tokenizer.encode_all(corpus.split(split))
            smallest = np.min_scalar_type(tokenizer.size)
            found |= {f"{split}_ids": ids_S.astype(smallest), f"{split}_lengths": length_N}
        return found

    def _shortened(self, corpus: Corpus) -> Corpus:
        corpus = replace(
            corpus,
            validation=corpus.validation[: self._validation_sentences],
            unscored=corpus.validation[len(corpus.validation[: self._validation_sentences]) :],
            test=corpus.test[: self._test_sentences],
        )
        number = self._train_sentences
        if number is None:
            return corpus
        if number > len(corpus.train):
            raise ValueError(
                f"data.train_sentences={number}: {corpus.name} has {len(corpus.train):,}"
            )
        return replace(corpus, train=corpus.train[:number], withheld=corpus.train[number:])

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
        """The encoded sentences of ``train``, ``validation`` or ``test``, without dropped ones."""
        return self._splits[name]

    def sentences(self, name: str) -> list[str]:
        """The same sentences as text; a truncated one appears in full."""
        whole = self.corpus.split(name)
        return [whole[i] for i in self._kept[name]] if name in self._kept else list(whole)

    def oracle_loss(self, name: str) -> float | None:
        """The grammar's own mean -log p over a split's targets, in nats.

        It is what a model that knows the grammar scores; on a finite split it scatters around
        `entropy_floor`. The grammar is taken as it is: on the test split it could gain
        `Corpus.test_shift` nats a sentence by knowing what the split leaves out. A target that the
        vocabulary does not hold counts as `<UNK>`: any of the words that read so. None without a
        grammar, for an empty split, and for one with truncated sentences.
        """
        if name not in self._oracle_losses:
            losses = self.grammar_losses(name)
            self._oracle_losses[name] = (
                None if losses is None else math.fsum(losses) / self._splits[name].num_targets
            )
        return self._oracle_losses[name]

    def grammar_losses(self, name: str, grammar: Grammar | None = None) -> list[float] | None:
        """What a grammar, the corpus's own or another, gives each word and end: -log p in nats.

        These are the targets, unless the tokens are parts of words. None as for `oracle_loss`.
        """
        grammar, split = grammar or self.corpus.grammar, self._splits[name]
        is_cut = self._too_long == "truncate" and self.num_too_long[name] > 0
        if grammar is None or not len(split) or is_cut:
            return None
        losses: list[float] = []
        for i, sentence in enumerate(self.sentences(name)):
            losses += (-x for x in self._log_probabilities(grammar, sentence.split(), split[i]))
        return losses

    def next_token_distributions(self, name: str) -> list[list[dict[int, float]]] | None:
        """The grammar's probability of each token that can follow, for every target of a split.

        By sentence and position. None without a grammar, and where tokens are parts of words.
        """
        grammar = self.corpus.grammar
        if grammar is None or not self._reads_words or not len(self._splits[name]):
            return None
        ids = {END: EOS}
        distributions = []
        for i, sentence in enumerate(self.sentences(name)):
            words = sentence.split()
            of_sentence = []
            for position in range(int(self._splits[name].num_positions_N[i])):
                following: dict[int, float] = defaultdict(float)
                for word, p in grammar.next_token_distribution(words[:position]).items():
                    if word not in ids:
                        ids[word] = self.tokenizer.encode(word)[1]
                    following[ids[word]] += p
                of_sentence.append(dict(following))
            distributions.append(of_sentence)
        return distributions

    def _log_probabilities(self, grammar: Grammar, words: list[str], ids: Tensor) -> list[float]:
        log_probabilities = grammar.token_log_probabilities(words)
        unknown = (ids[1:] == UNK).nonzero()[:, 0].tolist() if self._reads_words else []
        for position in unknown:
            following = grammar.next_token_distribution(words[:position])
            merged = sum(p for word, p in following.items() if self._reads_unknown(word))
            log_probabilities[position] = math.log(merged)
        return log_probabilities

    @property
    def _reads_words(self) -> bool:
        return self._tokenizer_kind == "words"

    def _reads_unknown(self, word: str) -> bool:
        return word != END and self.tokenizer.encode(word)[1] == UNK

    @property
    def entropy_floor(self) -> float | None:
        """The expectation of `oracle_loss`: the grammar's entropy in nats a token.

        None without a grammar, and where the splits hold something else than what it makes: parts
        of words, `<UNK>`, or no long sentences.
        """
        grammar = self.corpus.grammar
        if grammar is None or not self._reads_words or any(self.num_too_long.values()):
            return None
        if any(UNK in split.different_ids for split in self._splits.values()):
            return None
        return grammar.entropy_per_token()

    @property
    def data_sha256(self) -> str:
        """Digest of the corpus's splits."""
        return self.corpus.sha256

    @cached_property
    def _card(self) -> Card:
        corpus, targets = self.corpus, self.split("validation").targets
        dropped_or_truncated = "dropped" if self._too_long == "drop" else "truncated"
        return Card(
            corpus=corpus,
            vocabulary=self.tokenizer.size,
            num_unknown=int((targets == UNK).sum()),
            num_validation_targets=len(targets),
            num_too_long=self.num_too_long,
            too_long_fate=dropped_or_truncated,
            entropy_floor=self.entropy_floor,
            oracle_loss=self.oracle_loss("validation"),
            test_oracle_loss=self.oracle_loss("test"),
            num_test_targets=self.split("test").num_targets,
        )

    def card(self) -> Card:
        """What there is to know about the data at a glance."""
        return self._card

    def summary(self) -> str:
        """The card in one line."""
        return self.card().summary()

    def train_dataloader(self) -> TrainingBatches:
        """Batches in an order that changes with each epoch.

        Raises:
            ValueError: more than one process: each of them would see all the data.
        """
        if self.trainer is not None and self.trainer.world_size > 1:
            raise ValueError(
                f"trainer.devices={self.trainer.world_size}: the data feeds one process, set"
                " trainer.devices=1"
            )
        self._training = TrainingBatches(
            self.split("train"), self._batch_size, self._batching, self._order_seed
        )
        if self._place:
            self._training.load_state_dict(self._place)
        return self._training

    def state_dict(self) -> dict[str, int]:
        """The place in the training data.

        Lightning keeps that of the loader too, but restores it too late for a loader that was
        asked for early, as `Trainer.estimated_stepping_batches` does.
        """
        return self._training.state_dict() if self._training else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lets training go on from there."""
        self._place = state_dict
        if self._training:
            self._training.load_state_dict(state_dict)

    def val_dataloader(self) -> EvaluationBatches:
        """The validation split in fixed order."""
        return EvaluationBatches(self.split("validation"))

    def test_dataloader(self) -> EvaluationBatches:
        """The test split in fixed order; it has no batches for a hand-written corpus."""
        return EvaluationBatches(self.split("test"))


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
