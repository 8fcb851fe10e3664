"""From text to token ids and back: whole words, bytes, or byte-level byte-pair encoding."""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from newllm.config.faults import no_such_option
from newllm.data.reading import parse_json, read_text

PAD, UNK, BOS, EOS = range(4)
NUM_SPECIALS = 4
NUM_NEVER_PREDICTED = 2  # <PAD> and <BOS>

# A blank, which neither a word nor a byte-level token can hold, keeps a literal `<PAD>` in a text
# apart from the padding.
_SPECIALS = [" <PAD>", " <UNK>", " <BOS>", " <EOS>"]
_NUM_BYTES = 256
ENCODED_AT_ONCE = 100_000  # characters; the library's results take 100 bytes for each
TRAINED_ON = 1 << 23  # characters, for byte-pair encoding
MAX_WORDS = 1000  # of a part of a very long sentence
MAX_PIECE = 256  # bytes of a word that byte-pair encoding looks at together

KINDS = ("words", "bpe", "bytes")
BEFORE_BLANK = re.compile(r"(?<=\S)[ \n]")

# The types of the parts of a saved tokenizer.
SAVED: dict[str, tuple[str | None, ...]] = {
    "model": ("WordLevel", "BPE"),
    "normalizer": (None, "Lowercase"),
    "pre_tokenizer": ("WhitespaceSplit", "ByteLevel", "Sequence"),
    "decoder": (None, "ByteLevel"),
    "post_processor": (None, "TemplateProcessing"),
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
        self.is_of_words = isinstance(model.model, models.WordLevel)
        exact = _pre_tokenizer(is_exact=True)
        self.is_of_pairs = model.post_processor is not None
        self.is_exact = model.pre_tokenizer.__getstate__() == exact.__getstate__()

    @classmethod
    def train(
        cls,
        sentences: Iterable[str],
        kind: str = "words",
        vocabulary_size: int | None = None,
        lowercase: bool = True,
        is_exact: bool = False,
        is_of_pairs: bool = False,
    ) -> Self:
        """Learn a vocabulary: the most frequent tokens first, ties in alphabetical order.

        Args:
            sentences: the training sentences alone. BPE learns from the first `TRAINED_ON`
                characters or little more.
            kind: ``words`` (split at white space), ``bpe`` (byte level, without `<UNK>`) or
                ``bytes``.
            vocabulary_size: the largest number of tokens, the four specials counted. None keeps
                every word. BPE needs a number.
            lowercase: whether sentences and prompts are lower-cased first.
            is_exact: whether `decode` restores all white space, which it otherwise does for bytes
                alone. The tokens of a text then stand for its bytes and nothing else.
            is_of_pairs: whether the texts are prompts and responses. A second `<BOS>` then ends a
                prompt. The kind must not be ``words``.

        Raises:
            ValueError: an unknown kind, or a vocabulary size that is missing or too small.
        """
        if faults := kind_and_size_faults(kind, vocabulary_size):
            raise ValueError(faults[0])
        if kind == "words":
            return cls(_word_level(sentences, vocabulary_size, lowercase))
        if kind == "bytes":
            sentences, vocabulary_size, is_exact = (), NUM_SPECIALS + _NUM_BYTES, True
        assert vocabulary_size is not None
        model = _byte_level(is_exact)
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            special_tokens=_SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        if lowercase:
            model.normalizer = normalizers.Lowercase()
        if is_of_pairs:
            model.post_processor = _prompt_template()
        texts = (part for sentence in sentences for part in _parts(sentence, is_exact))
        model.train_from_iterator(_first(TRAINED_ON, texts), trainer)
        return cls(model)

    @cached_property
    def bytes_V(self) -> np.ndarray | None:
        """Bytes of text that each token stands for; None if they are not all of the text."""
        if not self.is_exact:
            return None
        vocabulary = self._model.get_vocab()
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)  # with one symbol for each byte
        return np.array([0] * NUM_SPECIALS + [len(token) for token in tokens[NUM_SPECIALS:]])

    def encode(self, sentence: str) -> list[int]:
        """``<BOS>``, the tokens of the sentence, ``<EOS>``."""
        ids: list[int] = self._model.encode(sentence, add_special_tokens=False).ids
        return [BOS, *ids, EOS]

    def encode_prompt(self, text: str) -> list[int]:
        """``<BOS>`` and the tokens of the beginning of a sentence, or those of a whole prompt.

        Unless tokens are exact, all white space counts as a blank, as in the sentences of a corpus.
        """
        ids = self.encode(text if self.is_exact else " ".join(text.split()))[:-1]
        return [*ids, BOS] if self.is_of_pairs else ids

    def encode_pairs(
        self, prompts: Sequence[str], responses: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``<BOS>``, a prompt, ``<BOS>``, its response and ``<EOS>``, for many pairs.

        Returns:
            All ids end to end; the number of ids of each pair; the number of its first targets that
            belong to the prompt or are its end. int32.
        """
        prompt_S, prompt_N = self.encode_all(prompts)
        response_S, response_N = self.encode_all(responses)
        prompt_S = np.delete(prompt_S, prompt_N.cumsum() - 1)  # without `<EOS>`
        prompt_N = prompt_N - 1
        length_N = prompt_N + response_N
        start_N = length_N.cumsum() - length_N
        place_S = np.arange(length_N.sum()) - np.repeat(start_N, length_N)
        is_prompt_S = place_S < np.repeat(prompt_N, length_N)
        ids_S = np.empty(len(place_S), np.int32)
        ids_S[is_prompt_S], ids_S[~is_prompt_S] = prompt_S, response_S
        return ids_S, length_N, prompt_N

    def encode_all(self, sentences: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """`encode` for many: all ids end to end, and the number of ids of each sentence. int32."""
        ids, lengths = array("i"), array("i")
        for sentence_ids in self._each(sentences):
            ids.append(BOS)
            ids.extend(sentence_ids)
            ids.append(EOS)
            lengths.append(len(sentence_ids) + 2)
        return np.array(ids, np.int32), np.array(lengths, np.int32)

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[Sequence[int]]:
        """The tokens of a text that comes in blocks, block by block, without specials.

        They are those of the whole text if every block but the first begins with a single blank or
        line break that follows a word. Unless they are exact, all white space counts as a blank.
        """
        if self.is_exact:
            return self._each(blocks)
        return self._each(" ".join(["", *block.split()]) for block in blocks)  # nothing for blanks

    def _each(self, texts: Iterable[str]) -> Iterator[Sequence[int]]:
        """The ids of each text, without specials."""
        is_of_bytes = self.is_exact and self.size == NUM_SPECIALS + _NUM_BYTES
        encode = self._words if self.is_of_words else self._bytes if is_of_bytes else self._pieces
        return encode(texts)

    def _words(self, sentences: Iterable[str]) -> Iterator[list[int]]:
        """The ids of each sentence. The library takes ten times as long for whole words."""
        token = self._model.get_vocab().get
        lowercase = self._model.normalizer is not None
        for sentence in sentences:
            words = (sentence.lower() if lowercase else sentence).split()
            yield [token(word, UNK) for word in words]

    def _bytes(self, sentences: Iterable[str]) -> Iterator[array[int]]:
        """The ids of the bytes of each sentence. The library takes a hundred times as long."""
        vocabulary = self._model.get_vocab()
        ids = np.array([vocabulary[symbol] for symbol in _symbols()], np.int32)
        lowercase = self._model.normalizer is not None
        for sentence in sentences:
            content = (sentence.lower() if lowercase else sentence).encode()
            yield array("i", ids[np.frombuffer(content, np.uint8)].tobytes())

    def _pieces(self, sentences: Iterable[str]) -> Iterator[list[int]]:
        """The ids of each sentence, encoded `ENCODED_AT_ONCE` characters or little more at once."""
        ids: list[int] = []
        whole = (_parts(sentence, self.is_exact) for sentence in sentences)
        for parts in _batches(whole):
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
        text: str = self._model.decode(known, skip_special_tokens=False)
        return text if self.is_exact else " ".join(text.split())

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


def _parts(text: str, is_exact: bool) -> list[str]:
    """A text, or the parts of a very long one. Cut at blanks, they give the same tokens."""
    if len(text) <= ENCODED_AT_ONCE:
        return [text]
    if not is_exact:
        words = text.split(" ")
        return [" ".join(words[i : i + MAX_WORDS]) for i in range(0, len(words), MAX_WORDS)]
    parts, start = [], 0
    while found := BEFORE_BLANK.search(text, start + ENCODED_AT_ONCE):
        parts.append(text[start : found.start()])
        start = found.start()
    return [*parts, text[start:]]


def _first(num_characters: int, texts: Iterable[str]) -> Iterator[str]:
    """The first texts that have so many characters."""
    for text in texts:
        if num_characters <= 0:
            return
        yield text
        num_characters -= len(text)


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
        own = [_as_json(_pre_tokenizer(flag)) for flag in (False, True)]
        is_changed = kind == "Sequence" and part not in own
        is_changed |= kind == "TemplateProcessing" and part != _as_json(_prompt_template())
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


def _as_json(part: Any) -> Any:
    return json.loads(part.__getstate__())


def _prompt_template() -> processors.TemplateProcessing:
    """Marks the tokenizer of pairs, as the library writes a prompt between two `<BOS>`."""
    bos = _SPECIALS[BOS]
    return processors.TemplateProcessing(single=[bos, "$A", bos], special_tokens=[(bos, BOS)])


def _byte_level(is_exact: bool) -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = _pre_tokenizer(is_exact)
    model.decoder = decoders.ByteLevel()
    return model


def _pre_tokenizer(is_exact: bool) -> pre_tokenizers.Sequence:
    """Cuts a text into words of bytes; unless it is exact, as if a blank stood before it."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=not is_exact),
            pre_tokenizers.Split(tokenizers.Regex(_piece_pattern()), "isolated"),
        ]
    )


def _symbols() -> list[str]:
    """The library's symbol for each byte: a printable character stands for itself."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(_NUM_BYTES)]


def _piece_pattern() -> str:
    """A regular expression for at most `MAX_PIECE` bytes that end between two characters.

    It cuts a text without blanks. Training and encoding are quadratic in the length of a word.
    """
    inner = _symbols()[0x80:0xC0]  # these bytes continue a character in UTF-8
    return f".{{1,{MAX_PIECE}}}(?![{''.join(inner)}])"


def kind_and_size_faults(kind: str, vocabulary_size: int | None) -> list[str]:
    """The faults of arguments of `Tokenizer.train`, a line each."""
    if faults := no_such_option("data", KINDS, tokenizer=kind):
        return faults
    if kind == "bpe" and vocabulary_size is None:
        return ["data.tokenizer=bpe: needs data.vocabulary_size, for example 1000"]
    smallest = NUM_SPECIALS + (1 if kind == "words" else _NUM_BYTES)
    if vocabulary_size is not None and vocabulary_size < smallest:
        return [
            f"data.vocabulary_size={vocabulary_size}: must be at least {smallest}"
            f" for data.tokenizer={kind}"
        ]
    return []
