"""The data module: from a corpus's name to batches, the oracle and the data card."""

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from lightning import LightningDataModule
from torch import Tensor

from newllm.data.batching import BATCHINGS, EncodedSplit, EvaluationBatches, TrainingBatches
from newllm.data.card import Card
from newllm.data.corpora import NAMES, SPLITS, Corpus, build_corpus, read_text_corpus
from newllm.data.grammar import END, Grammar
from newllm.data.tokenizer import EOS, UNK, Tokenizer, kind_and_size_faults

TOO_LONG = ("error", "truncate", "drop")
OPTIONS = {"corpus": NAMES, "batching": BATCHINGS, "too_long": TOO_LONG}


class CorpusDataModule(LightningDataModule):
    """A corpus, tokenized with what its training part teaches, in batches.

    Args:
        corpus: one of `newllm.data.corpora.NAMES`.
        order_seed: decides the order of the training batches and nothing else.
        batch_size: sentences in a training batch.
        batching: ``shuffled`` or ``bucketed`` (sentences of like length together).
        seed: redraws and splits the corpus anew; None gives the published corpus.
        directory: where the corpus's files are written for reading; ``text`` writes none, nor does
            None.
        tokenizer: ``words`` or ``bpe``.
        vocabulary_size: the largest vocabulary, the four specials counted; None keeps all words.
        max_length: positions, that is ``<BOS>`` and the tokens after it but not ``<EOS>``, that
            a sentence may take.
        train_sentences: only so many of the training sentences, the first; None takes all. The
            vocabulary stays that of all.
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
        self._name, self._seed, self._path = corpus, seed, path
        self._fractions = {
            "validation_fraction": validation_fraction,
            "test_fraction": test_fraction,
        }
        self._directory = None if directory is None else Path(directory)
        self._tokenizer_kind, self._vocabulary_size = tokenizer, vocabulary_size
        self._lowercase, self._too_long = lowercase, too_long
        self._train_sentences = train_sentences
        self._batch_size, self._batching, self._order_seed = batch_size, batching, order_seed
        self._kept: dict[str, list[int]] = {}
        self._splits: dict[str, EncodedSplit] = {}
        self._oracle_losses: dict[str, float | None] = {}

    def setup(self, stage: str | None = None) -> None:
        """Reads the corpus, trains the tokenizer on its training part and encodes every split.

        A second call does nothing; ``stage`` makes no difference.
        """
        if self._splits:
            return
        self.corpus = self._shortened(self._read_corpus())
        # All training sentences decide on the vocabulary, so that losses can be compared.
        self.tokenizer = Tokenizer.train(
            self.corpus.train + self.corpus.withheld,
            self._tokenizer_kind,
            self._vocabulary_size,
            self._lowercase,
        )
        self.num_too_long: dict[str, int] = {}
        splits = {split: self._encode(split) for split in SPLITS}
        for split in ("train", "validation"):
            if not len(splits[split]):
                raise ValueError(
                    f"data.max_length={self.max_length} with data.too_long=drop leaves no"
                    f" sentence in the {split} split"
                )
        self._splits = splits
        self.steps_per_epoch = -(-len(splits["train"]) // self._batch_size)

    def _read_corpus(self) -> Corpus:
        if self._path:
            return read_text_corpus(
                Path(self._path), seed=self._seed, lowercase=self._lowercase, **self._fractions
            )
        corpus = build_corpus(self._name, self._seed)
        if self._directory is not None:
            corpus.write(self._directory)
        return corpus

    def _shortened(self, corpus: Corpus) -> Corpus:
        number = self._train_sentences
        if number is None:
            return corpus
        if number > len(corpus.train):
            raise ValueError(
                f"data.train_sentences={number}: {corpus.name} has {len(corpus.train):,}"
            )
        return replace(corpus, train=corpus.train[:number], withheld=corpus.train[number:])

    def _encode(self, split: str) -> EncodedSplit:
        encoded = self.tokenizer.encode_all(self.corpus.split(split))
        too_long = [i for i, ids in enumerate(encoded) if len(ids) - 1 > self.max_length]
        self.num_too_long[split] = len(too_long)
        if too_long and self._too_long == "error":
            raise ValueError(
                f"{self.corpus.location(split, too_long[0])} takes"
                f" {len(encoded[too_long[0]]) - 1} positions, more than data.max_length="
                f"{self.max_length} ({len(too_long)} such in the {split} split): raise it, or set"
                " data.too_long=truncate or data.too_long=drop"
            )
        dropped = set(too_long) if self._too_long == "drop" else set()
        self._kept[split] = [i for i in range(len(encoded)) if i not in dropped]
        return EncodedSplit([encoded[i][: self.max_length + 1] for i in self._kept[split]])

    def split(self, name: str) -> EncodedSplit:
        """The encoded sentences of ``train``, ``validation`` or ``test``, without dropped ones."""
        return self._splits[name]

    def sentences(self, name: str) -> list[str]:
        """The same sentences as text; a truncated one appears in full."""
        whole = self.corpus.split(name)
        return [whole[i] for i in self._kept[name]]

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
        is_changed = any(self.num_too_long.values()) or any(
            bool((split.targets == UNK).any()) for split in self._splits.values()
        )
        if self.corpus.grammar is None or not self._reads_words or is_changed:
            return None
        return self.corpus.grammar.entropy_per_token()

    @property
    def data_sha256(self) -> str:
        """Digest of the corpus's splits."""
        return self.corpus.sha256

    def card(self) -> Card:
        """What there is to know about the data at a glance."""
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
        return TrainingBatches(
            self.split("train"), self._batch_size, self._batching, self._order_seed
        )

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
