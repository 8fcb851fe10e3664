"""Corpora of sentences and how they are split.

``tiny30`` and ``augmented124`` are written by hand, ``quality500`` and ``quality12500`` are drawn
from the grammar in ``quality.toml``, and ``text`` is any file with a sentence on each line.
``augmented124`` is a stand-in: only the size and the vocabulary of the original are known. The
words of the grammar are not the original's, but unigram and bigram models score alike on both, so
that losses can be compared with the published ones.

A corpus is a pure function of its arguments. The files that `Corpus.write` leaves are for reading
only.
"""

import contextlib
import hashlib
import math
import os
import random
import sys
import tomllib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from newllm.data.reading import read_bytes, read_text
from newllm.data.sources.grammar import Grammar

NAMES = ("tiny30", "augmented124", "quality500", "quality12500", "text")
SPLITS = ("train", "validation", "test")

SPLIT_SEED = 42
TRAIN_FRACTION = 0.8
LARGEST_TEXT = 1 << 36  # bytes
NUM_TEST_SENTENCES = 10_000

# The first draw of quality500 with the published 4,986 words, 252 of them distinct. There are no
# published figures for quality12500.
DRAW_SEEDS = {"quality500": 12, "quality12500": 0}
NUM_SENTENCES = {"quality500": 500, "quality12500": 12_500}


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


@dataclass(frozen=True)
class Corpus:
    """Sentences, words separated by single blanks, in three splits of fixed order.

    Attributes:
        seed: of the draw and the split. None for the published corpus.
        grammar: the distribution the sentences were drawn from, if there is one.
        path: the file that was read, None for the corpora of this package.
        line_numbers: of the sentences of each split of a file, counted from 1.
        num_blank_lines: lines of the file that hold no sentence.
        unused: sentences that a limit leaves out of the training or the validation split.
    """

    name: str
    train: Sequence[str]
    validation: Sequence[str]
    test: Sequence[str] = ()
    seed: int | None = None
    grammar: Grammar | None = None
    path: Path | None = None
    line_numbers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    num_blank_lines: int = 0
    unused: Sequence[str] = ()

    def split(self, name: str) -> Sequence[str]:
        """The sentences of ``train``, ``validation`` or ``test``."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    def location(self, split: str, index: int) -> str:
        """Where a sentence stands, as ``FILE:LINE``."""
        if self.path is not None:
            return f"{self.path}:{self.line_numbers[split][index]}"
        return f"{self._file_name(split)}:{index + 1}"

    def count(self) -> Counts:
        """Count words and sentences."""
        words: set[str] = set()
        num_words, shortest, longest = 0, sys.maxsize, 0
        for sentence in chain(self.train, self.validation):
            found = sentence.split()
            words.update(found)
            num_words += len(found)
            shortest, longest = min(shortest, len(found)), max(longest, len(found))
        shared = set(self.validation).intersection(self.train)
        overlap = sum(sentence in shared for sentence in self.validation)
        return Counts(num_words, len(words), shortest, longest, overlap, self.num_blank_lines)

    @cached_property
    def sha256(self) -> str:
        """Digest of all three splits, in hexadecimal."""
        content = hashlib.sha256()
        for split in SPLITS:
            content.update(b"" if split == SPLITS[0] else b"\f")
            for sentence in self.split(split):
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


def read_text_corpus(
    path: Path,
    *,
    seed: int | None = None,
    lowercase: bool = True,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
) -> Corpus:
    """Any UTF-8 file with a sentence on each line. Lines without a word are left out.

    Raises:
        ValueError: fractions that leave nothing to train on, or a file that is missing, a
            directory, not UTF-8 text, empty, or too short to be split.
    """
    _check_fractions(validation_fraction, test_fraction)
    # Only real line ends count, as in an editor: str.splitlines would also cut at form feeds.
    lines = _read_text(path).removesuffix("\n").split("\n")
    numbers, sentences = array("i"), []
    for number, line in enumerate(lines, start=1):
        if words := (line.lower() if lowercase else line).split():
            numbers.append(number)
            sentences.append(" ".join(words))
    num_validation = max(1, round(validation_fraction * len(sentences)))
    num_test = max(1, round(test_fraction * len(sentences))) if test_fraction else 0
    num_train = len(sentences) - num_validation - num_test
    if num_train < 1:
        raise ValueError(
            f"data.path={path}: it holds too few sentences to be split ({len(sentences)}):"
            " put one on each line, at least one for each split"
        )
    order = list(range(len(sentences)))
    random.Random(SPLIT_SEED if seed is None else seed).shuffle(order)
    indices = {
        "train": order[:num_train],
        "validation": order[num_train : num_train + num_validation],
        "test": order[num_train + num_validation :],
    }
    train, validation, test = (tuple(sentences[i] for i in chosen) for chosen in indices.values())
    return Corpus(
        "text",
        train,
        validation,
        test,
        seed=seed,
        path=path,
        line_numbers={
            split: array("i", (numbers[i] for i in chosen)) for split, chosen in indices.items()
        },
        num_blank_lines=len(lines) - len(sentences),
    )


def _check_fractions(validation: float, test: float) -> None:
    if not 0 < validation < 1:
        raise ValueError(f"data.validation_fraction={validation}: must lie between 0 and 1")
    if not 0 <= test < 1:
        raise ValueError(f"data.test_fraction={test}: must be 0 or lie between 0 and 1")
    if validation + test >= 1:
        raise ValueError(
            f"data.validation_fraction={validation} and data.test_fraction={test} leave nothing"
            " to train on: their sum must be below 1"
        )


def text_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        ValueError: it is no regular file that can be read.
    """
    with _faults_of(path):
        return hashlib.sha256(read_bytes(path, LARGEST_TEXT)).hexdigest()


@contextlib.contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Add the setting that names a file to its faults."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"data.path={path}: {error}") from error


def _read_text(path: Path) -> str:
    """The text of a file with line ends of one kind."""
    with _faults_of(path):
        text = read_text(path, LARGEST_TEXT).removeprefix("\ufeff")
        if "\0" in text:
            raise ValueError("it is a binary file, not text: it holds zero bytes")
        if not text.strip():
            raise ValueError("it is empty: it needs a sentence on each line")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _resource(name: str) -> str:
    return files("newllm.data.sources").joinpath(name).read_text(encoding="utf-8")
