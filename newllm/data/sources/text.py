"""Sentences, documents, and pairs of prompt and response from files of the user's own."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from newllm.data.reading import files_below, parse_json, read_bytes, read_text
from newllm.data.sources.corpora import Corpus
from newllm.data.sources.corpus_source import CorpusSource
from newllm.data.sources.splitting import (
    PAIR,
    Sequences,
    plain_text,
    plural,
    split_corpus,
    splitting_faults,
)

LARGEST_TEXT = 1 << 36  # bytes
LARGE_TEXT = 500_000  # bytes of a text from which on computed arrays are cached


class TextSource(CorpusSource):
    """A corpus of UTF-8 files.

    A path is a file, or a folder of which all files are read but hidden ones. A file that ends in
    `.jsonl` holds an object on each line, with a `text`, or with a `prompt` and a `response`.

    Args:
        path: a file or folder.
        validation_path, test_path: files or folders to evaluate on, instead of a part of `path`.
        unit: what a sequence is: a `line`, with its words separated by single blanks; a
            `paragraph`, which ends at a blank line; an `article`, which begins at a line
            ` = TITLE = `; a whole `document`; or a `pair`, whose response is the sequence.
        lowercase: whether text is lower-cased. None lower-cases lines alone.
        seed: of the split. None gives the usual one.
        validation_fraction, test_fraction: shares of the sequences of `path`.
        settings: of `CorpusSource`.
    """

    def __init__(
        self,
        path: str | None = None,
        validation_path: str | None = None,
        test_path: str | None = None,
        unit: str = "line",
        lowercase: bool | None = None,
        seed: int | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        **settings: Any,
    ) -> None:
        name = "pairs" if unit == PAIR else "text"
        faults = splitting_faults(unit, seed, validation_fraction, test_fraction)
        if not path:
            faults.append(f"data={name}: needs data.path=FILE")
        lowercase = unit == "line" if lowercase is None else lowercase
        super().__init__(name, plural(unit), lowercase, faults, **settings)
        paths = {"path": path, "validation_path": validation_path, "test_path": test_path}
        self._paths = {key: Path(given) for key, given in paths.items() if given}
        self._reading: dict[str, Any] = {
            "unit": unit,
            "lowercase": lowercase,
            "seed": seed,
            "validation_fraction": validation_fraction,
            "test_fraction": test_fraction,
        }

    def read(self) -> Corpus:
        """Read the files."""
        self.announce(f"reading {self._paths['path']}")
        return read_text_corpus(self._paths, **self._reading)

    def text_settings(self) -> dict[str, Any]:
        """A digest of the files, and how they are read."""
        return {"text": text_digest(self._paths), **self._reading}

    def is_large(self) -> bool:
        """Whether the files have `LARGE_TEXT` bytes."""
        return text_size(self._paths) >= LARGE_TEXT


def read_text_corpus(
    paths: Mapping[str, Path], *, unit: str = "line", lowercase: bool = True, **splitting: Any
) -> Corpus:
    """The sequences of files, those without a word left out.

    Args:
        paths: `path` is what to train on; `validation_path` and `test_path` are what to evaluate
            on, instead of parts of `path`.
        unit, lowercase: as in `TextSource`.
        splitting: arguments of `split_corpus`.

    Raises:
        ValueError: a file is missing, not UTF-8 text, empty, or too short to be split.
    """
    read = {key: _read(key, path, unit, lowercase) for key, path in paths.items()}
    whole = read.pop("path")
    own = {key.removesuffix("_path"): sequences for key, sequences in read.items()}
    remedy = "name other files with data.validation_path and data.test_path"
    if unit == "line":
        remedy = "put one on each line, at least one for each split"
    return split_corpus("text", whole, own, unit=unit, remedy=remedy, **splitting)


def _read(key: str, path: Path, unit: str, lowercase: bool) -> Sequences:
    found = Sequences(f"data.{key}={path}", path=path)
    for file in _files(key, path):
        if unit == PAIR:
            for _, (prompt, response) in _records(key, file, ("prompt", "response")):
                found.add_pair(prompt, response, lowercase)
            continue
        for text, line_numbers in _texts(key, file):
            found.add(text, unit, lowercase, line_numbers if file == path else None)
    return found


def text_digest(paths: Mapping[str, Path]) -> str:
    """SHA-256 of the bytes of files by the name of their setting, in hexadecimal.

    Raises:
        ValueError: one is no regular file that can be read.
    """
    digest = hashlib.sha256()
    for key, path in paths.items():
        for file in _files(key, path):
            with _faults_of(key, file):
                content = read_bytes(file, LARGEST_TEXT)
            digest.update(f"{key} {file.relative_to(path)} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def text_size(paths: Mapping[str, Path]) -> int:
    """Bytes of the files."""
    return sum(file.stat().st_size for key, path in paths.items() for file in _files(key, path))


@contextlib.contextmanager
def _faults_of(key: str, path: Path) -> Iterator[None]:
    """Add the setting that names a file to its faults."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"data.{key}={path}: {error}") from error


def _files(key: str, path: Path) -> list[Path]:
    files = files_below(path)
    if not files:
        raise ValueError(f"data.{key}={path}: the folder holds no files")
    return files


def _texts(key: str, file: Path) -> Iterator[tuple[str, Iterable[int]]]:
    """The text of a file, or the texts of one with an object on each line.

    With each come the numbers of its lines in the file.
    """
    with _faults_of(key, file):
        if file.suffix != ".jsonl":
            yield _text(file), itertools.count(1)
            return
    for number, (text,) in _records(key, file, ("text",)):
        yield text, itertools.repeat(number)


def _records(key: str, file: Path, fields: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """The line and the fields of the objects of a file, one on each line."""
    with _faults_of(key, file):
        for number, line in enumerate(_text(file).split("\n"), start=1):
            if not line.strip():
                continue
            try:
                record = parse_json(line)
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from error
            given = record if isinstance(record, dict) else {}
            found = [text for name in fields if isinstance(text := given.get(name), str)]
            if len(found) < len(fields):
                raise ValueError(f"line {number} needs text as {' and '.join(fields)}")
            yield number, found


def _text(file: Path) -> str:
    return plain_text(read_text(file, LARGEST_TEXT).removeprefix("\ufeff"))
