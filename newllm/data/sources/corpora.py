"""Corpora and how they are split.

``tiny30`` and ``augmented124`` are written by hand, ``quality500`` and ``quality12500`` are drawn
from the grammar in ``quality.toml``.
``augmented124`` is a stand-in: only the size and the vocabulary of the original are known. The
words of the grammar are not the original's, but unigram and bigram models score alike on both, so
that losses can be compared with the published ones.

A corpus is a pure function of its arguments. The files that `Corpus.write` leaves are for reading
only.
"""

import hashlib
import math
import os
import random
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from newllm.data.sources.grammar import Grammar

BUILT_IN = ("tiny30", "augmented124", "quality500", "quality12500")
SPLITS = ("train", "validation", "test")

SPLIT_SEED = 42
TRAIN_FRACTION = 0.8
NUM_TEST_SENTENCES = 10_000

# The first draw of quality500 with the published 4,986 words, 252 of them distinct. There are no
# published figures for quality12500.
DRAW_SEEDS = {"quality500": 12, "quality12500": 0}
NUM_SENTENCES = {"quality500": 500, "quality12500": 12_500}


class Counts(NamedTuple):
    """Counts over the training and validation sequences of a corpus.

    Attributes:
        shortest, longest: words of a sequence.
        overlap: validation sequences that are in the training split as well.
    """

    num_words: int
    num_unique_words: int
    shortest: int
    longest: int
    overlap: int
    num_blank_lines: int


@dataclass(frozen=True)
class Corpus:
    """Sequences of text in three splits of fixed order.

    They are sentences, whose words are separated by single blanks, or documents.

    Attributes:
        seed: of the draw and the split. None for the published corpus.
        grammar: the distribution the sentences were drawn from, if there is one.
        unit: what the sequences are, in the plural.
        files: that the splits were read from; empty for the corpora of this package.
        line_numbers: of the sentences of each split in its file, counted from 1.
        num_blank_lines: lines of the files that hold no sentence.
        unused: sequences that a limit leaves out of the training or the validation split.
        prompts: of each split, if its sequences are responses.
    """

    name: str
    train: Sequence[str]
    validation: Sequence[str]
    test: Sequence[str] = ()
    seed: int | None = None
    grammar: Grammar | None = None
    unit: str = "sentences"
    files: Mapping[str, Path] = field(default_factory=dict)
    line_numbers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    num_blank_lines: int = 0
    unused: Sequence[str] = ()
    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def split(self, name: str) -> Sequence[str]:
        """The sequences of ``train``, ``validation`` or ``test``."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def whole(self, name: str) -> Sequence[str]:
        """The same, each after its prompt if it is a response."""
        responses = self.split(name)
        if not self.prompts:
            return responses
        pairs = zip(self.prompts[name], responses, strict=False)  # a limit shortens the responses
        return [f"{prompt}\n{response}" for prompt, response in pairs]

    def location(self, split: str, index: int) -> str:
        """Where a sequence stands, as ``FILE:LINE`` if it is a line of a file."""
        if numbers := self.line_numbers.get(split):
            return f"{self.files[split]}:{numbers[index]}"
        if self.name not in BUILT_IN:
            return f"number {index + 1} of the {split} {self.unit}"
        return f"{self._file_name(split)}:{index + 1}"

    def count(self) -> Counts:
        """Count words and sequences."""
        words: set[str] = set()
        num_words, shortest, longest = 0, sys.maxsize, 0
        train, validation = self.whole("train"), self.whole("validation")
        for sentence in chain(train, validation):
            found = sentence.split()
            words.update(found)
            num_words += len(found)
            shortest, longest = min(shortest, len(found)), max(longest, len(found))
        shared = set(validation).intersection(train)
        overlap = sum(sentence in shared for sentence in validation)
        return Counts(num_words, len(words), shortest, longest, overlap, self.num_blank_lines)

    @cached_property
    def sha256(self) -> str:
        """Digest of all three splits, in hexadecimal."""
        content = hashlib.sha256()
        for split in SPLITS:
            content.update(b"" if split == SPLITS[0] else b"\f")
            for sentence in self.whole(split):
                content.update(f"{sentence}\n".encode())
        return content.hexdigest()

    @cached_property
    def test_shift(self) -> float:
        """How much likelier a test sentence is than under the grammar, in nats per sentence.

        Test sentences are drawn on condition that they are in no other split. With S the set of the
        sentences of the other splits, this makes every other one likelier by 1 / (1 - P(S)). 0.0
        without a grammar.
        """
        if self.grammar is None:
            return 0.0
        seen = {*self.train, *self.validation, *self.unused}
        mass = math.fsum(math.exp(self.grammar.log_probability(s.split())) for s in sorted(seen))
        return -math.log1p(-mass)

    def write(self, directory: Path) -> None:
        """Write each split to a file in ``directory`` unless it is there already. Atomic.

        Raises:
            ValueError: the directory cannot be written to.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for split in SPLITS:
                path = directory / self._file_name(split)
                content = "".join(f"{sentence}\n" for sentence in self.split(split)).encode()
                if not path.exists() or path.read_bytes() != content:
                    partial = path.with_name(f".{path.name}.{os.getpid()}")
                    partial.write_bytes(content)
                    partial.replace(path)
        except OSError as error:
            raise ValueError(
                f"data.directory={directory}: cannot be written: {error.strerror}"
            ) from error

    def _file_name(self, split: str) -> str:
        seed = "" if self.seed is None else f".seed{self.seed}"
        return f"{self.name}{seed}.{split}.txt"


@lru_cache(maxsize=8)
def build_corpus(name: str, seed: int | None = None) -> Corpus:
    """One of the corpora of this package.

    Args:
        name: ``tiny30``, ``augmented124``, ``quality500`` or ``quality12500``.
        seed: redraws the sentences of a grammar corpus and splits any corpus anew. None gives the
            corpus with the published figures.
    """
    if name in NUM_SENTENCES:
        return _from_grammar(name, seed)
    sentences = _resource("tiny30.txt").splitlines()
    if name == "augmented124":
        sentences += _resource("augmented94.txt").splitlines()
    train, validation = _shuffle_and_split(sentences, seed)
    return Corpus(name, train, validation, seed=seed)


def quality_grammar() -> Grammar:
    """The grammar that quality500 and quality12500 are drawn from."""
    return Grammar(tomllib.loads(_resource("quality.toml")), start="sentence")


def _from_grammar(name: str, seed: int | None) -> Corpus:
    grammar = quality_grammar()
    draw_seed = DRAW_SEEDS[name] if seed is None else seed
    sentences = _draw(grammar, NUM_SENTENCES[name], random.Random(f"{name} {draw_seed}"))
    train, validation = _shuffle_and_split(sentences, seed)
    rng = random.Random(f"{name} test {draw_seed}")
    seen = set(sentences)
    test: list[str] = []
    while len(test) < NUM_TEST_SENTENCES:
        sentence = " ".join(grammar.sample(rng))
        if sentence not in seen:
            test.append(sentence)
    return Corpus(name, train, validation, tuple(test), seed, grammar)


def _draw(grammar: Grammar, num_sentences: int, rng: random.Random) -> list[str]:
    """Sentences of each type in exactly the grammar's proportions, repetitions allowed."""
    weights: dict[str, int] = tomllib.loads(_resource("quality.toml"))["sentence"]
    quotas = {symbol.strip("<>"): weight for symbol, weight in weights.items()}
    scale, remainder = divmod(num_sentences, sum(quotas.values()))
    assert remainder == 0, "the types' proportions must give whole numbers of sentences"
    return [
        " ".join(grammar.sample(rng, symbol))
        for symbol, quota in quotas.items()
        for _ in range(quota * scale)
    ]


def _shuffle_and_split(
    sentences: list[str], seed: int | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    shuffled = list(sentences)
    random.Random(SPLIT_SEED if seed is None else seed).shuffle(shuffled)
    num_train = int(TRAIN_FRACTION * len(shuffled))
    return tuple(shuffled[:num_train]), tuple(shuffled[num_train:])


def _resource(name: str) -> str:
    return files("newllm.data.sources").joinpath(name).read_text(encoding="utf-8")
