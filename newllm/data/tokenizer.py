"""From sentences to token ids and back: whole words, or byte-level byte-pair encoding."""

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from newllm.data.reading import parse_json, read_text

PAD, UNK, BOS, EOS = range(4)
NUM_SPECIALS = 4
NUM_NEVER_PREDICTED = 2  # <PAD> and <BOS>

# A blank, which neither a word nor a byte-level token can hold, keeps a literal `<PAD>` in a text
# apart from the padding.
_SPECIALS = [" <PAD>", " <UNK>", " <BOS>", " <EOS>"]
_NUM_BYTES = 256
ENCODED_AT_ONCE = 100_000  # characters; the library's results take 100 bytes for each
MAX_WORDS = 1000  # of a part of a very long sentence
MAX_PIECE = 256  # bytes of a word that byte-pair encoding looks at together

KINDS = ("words", "bpe")

# The types of the parts of a saved tokenizer.
SAVED: dict[str, tuple[str | None, ...]] = {
    "model": ("WordLevel", "BPE"),
    "normalizer": (None, "Lowercase"),
    "pre_tokenizer": ("WhitespaceSplit", "ByteLevel", "Sequence"),
    "decoder": (None, "ByteLevel"),
    "post_processor": (None,),
    "truncation": (None,),
    "padding": (None,),
}
LARGEST_FILE = 1 << 26  # bytes


class Tokenizer:
    """A trained tokenizer; `Tokenizer.train` and `Tokenizer.load` make one."""

    def __init__(self, model: tokenizers.Tokenizer) -> None:
        # Not saved by the library: without it, the names of specials are looked for in texts.
        model.encode_special_tokens = True
        self._model = model
        self.size: int = model.get_vocab_size()

    @classmethod
    def train(
        cls,
        sentences: Iterable[str],
        kind: str = "words",
        vocabulary_size: int | None = None,
        lowercase: bool = True,
    ) -> Self:
        """Learn a vocabulary: the most frequent tokens first, ties in alphabetical order.

        Args:
            sentences: the training sentences alone.
            kind: ``words`` (split at white space) or ``bpe`` (byte level, without `<UNK>`).
            vocabulary_size: the largest number of tokens, the four specials counted. None keeps
                every word. BPE needs a number.
            lowercase: whether sentences and prompts are lower-cased first.

        Raises:
            ValueError: an unknown kind, or a vocabulary size that is missing or too small.
        """
        if faults := kind_and_size_faults(kind, vocabulary_size):
            raise ValueError(faults[0])
        if kind == "words":
            return cls(_word_level(sentences, vocabulary_size, lowercase))
        assert vocabulary_size is not None
        model = _byte_level()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=_SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        if lowercase:
            model.normalizer = normalizers.Lowercase()
        texts = (part for sentence in sentences for part in _parts(sentence))
        model.train_from_iterator(texts, trainer)
        return cls(model)

    def encode(self, sentence: str) -> list[int]:
        """``<BOS>``, the tokens of the sentence, ``<EOS>``."""
        return [*self.encode_prompt(sentence), EOS]

    def encode_prompt(self, text: str) -> list[int]:
        """``<BOS>`` and the tokens of the beginning of a sentence."""
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return [BOS, *ids]

    def encode_all(self, sentences: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """`encode` for many: all ids end to end, and the number of ids of each sentence. int32."""
        is_of_words = isinstance(self._model.model, models.WordLevel)
        ids, lengths = array("i"), array("i")
        for sentence_ids in (self._words if is_of_words else self._pieces)(sentences):
            ids.append(BOS)
            ids.extend(sentence_ids)
            ids.append(EOS)
            lengths.append(len(sentence_ids) + 2)
        return np.array(ids, np.int32), np.array(lengths, np.int32)

    def _words(self, sentences: Iterable[str]) -> Iterator[list[int]]:
        """The ids of each sentence. The library takes ten times as long for whole words."""
        token = self._model.get_vocab().get
        lowercase = self._model.normalizer is not None
        for sentence in sentences:
            words = (sentence.lower() if lowercase else sentence).split()
            yield [token(word, UNK) for word in words]

    def _pieces(self, sentences: Iterable[str]) -> Iterator[list[int]]:
        """The ids of each sentence, encoded `ENCODED_AT_ONCE` characters or little more at once."""
        ids: list[int] = []
        for parts in _batches(map(_parts, sentences)):
            texts = [text for text, _ in parts]
            encodings = self._model.encode_batch_fast(texts, add_special_tokens=False)
            for (_, is_last), encoding in zip(parts, encodings, strict=True):
                ids += encoding.ids
                if is_last:
                    yield ids
                    ids = []

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some tokens, without ``<PAD>``, ``<BOS>`` and ``<EOS>``.

        An id past the vocabulary, which a wider output layer can produce, reads ``<UNK>``.
        """
        known = [i if i < self.size else UNK for i in ids if i not in (PAD, BOS, EOS)]
        return " ".join(self._model.decode(known, skip_special_tokens=False).split())

    def to_json(self) -> str:
        """The tokenizer in the format of the `tokenizers` library."""
        return self._model.to_str(pretty=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that holds what `to_json` gave.

        Raises:
            ValueError: it holds something else.
        """
        text = read_text(path, LARGEST_FILE)
        _check_saved(parse_json(text))
        try:
            return cls.from_json(text)
        except BaseException as error:  # a panic of the library, in Rust, is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            raise ValueError(f"it is not a tokenizer; {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """A tokenizer from what `to_json` gave."""
        return cls(tokenizers.Tokenizer.from_str(text))


def _parts(sentence: str) -> list[str]:
    """A sentence, or the parts of a very long one. Cut at blanks, they give the same tokens."""
    if len(sentence) <= ENCODED_AT_ONCE:
        return [sentence]
    words = sentence.split(" ")
    return [" ".join(words[i : i + MAX_WORDS]) for i in range(0, len(words), MAX_WORDS)]


def _batches(sentences: Iterable[list[str]]) -> Iterator[list[tuple[str, bool]]]:
    """The parts of all sentences, and whether each is the last of its sentence."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for parts in sentences:
        for number, part in enumerate(parts, start=1):
            batch.append((part, number == len(parts)))
            size += len(part)
            if size >= ENCODED_AT_ONCE:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _check_saved(content: Any) -> None:
    """Check that a file holds what `train` makes.

    Other parts of the library may take any time or memory. A gap in the numbers of the tokens would
    need a model as large as the largest number.
    """
    if not isinstance(content, dict):
        raise ValueError("it contains no tokenizer")
    for name, kinds in SAVED.items():
        part = content.get(name)
        kind = part.get("type", "unknown") if isinstance(part, dict) else part
        # A pattern may take any time.
        is_changed = kind == "Sequence" and part != json.loads(_byte_level().to_str())[name]
        if kind not in kinds or is_changed:
            raise ValueError(f"its {name} is not one of newllm's")
    vocabulary, added = content["model"].get("vocab"), content.get("added_tokens")
    if not isinstance(vocabulary, dict) or set(vocabulary.values()) != {*range(len(vocabulary))}:
        raise ValueError("its tokens are not numbered from 0")
    tokens = added if isinstance(added, list) else []
    found = [(token.get("id"), token.get("content")) for token in tokens if isinstance(token, dict)]
    known = list(enumerate(_SPECIALS))
    if found != known or any(vocabulary.get(name) != number for number, name in known):
        raise ValueError("its special tokens are not newllm's")


def _word_level(
    sentences: Iterable[str], vocabulary_size: int | None, lowercase: bool
) -> tokenizers.Tokenizer:
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update((sentence.lower() if lowercase else sentence).split())
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = [*_SPECIALS, *words][:vocabulary_size]
    ids = {token: number for number, token in enumerate(vocabulary)}
    model = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=_SPECIALS[UNK]))
    model.add_special_tokens(_SPECIALS)
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if lowercase:
        model.normalizer = normalizers.Lowercase()
    return model


def _byte_level() -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=True),
            pre_tokenizers.Split(tokenizers.Regex(_piece_pattern()), "isolated"),
        ]
    )
    model.decoder = decoders.ByteLevel()
    return model


def _piece_pattern() -> str:
    """A regular expression for at most `MAX_PIECE` bytes that end between two characters.

    It cuts a text without blanks. Training and encoding are quadratic in the length of a word.
    """
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # The library's symbols for the bytes 0x80 to 0xBF, which continue a character in UTF-8.
    inner = [level.pre_tokenize_str(chr(byte))[0][0][1] for byte in range(0x80, 0xC0)]
    return f".{{1,{MAX_PIECE}}}(?![{''.join(inner)}])"


def kind_and_size_faults(kind: str, vocabulary_size: int | None) -> list[str]:
    """The faults of arguments of `Tokenizer.train`, a line each."""
    if kind not in KINDS:
        return [f"data.tokenizer={kind}: no such option; options: {', '.join(KINDS)}"]
    if kind == "bpe" and vocabulary_size is None:
        return ["data.tokenizer=bpe: needs data.vocabulary_size, for example 1000"]
    smallest = NUM_SPECIALS + (_NUM_BYTES if kind == "bpe" else 1)
    if vocabulary_size is not None and vocabulary_size < smallest:
        return [
            f"data.vocabulary_size={vocabulary_size}: must be at least {smallest}"
            f" for data.tokenizer={kind}"
        ]
    return []
