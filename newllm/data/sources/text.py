"""Sentences, documents, and pairs of prompt and response from files of the user's own."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from newllm.data.reading import files_below, parse_json, read_bytes, read_text
from newllm.data.sources.corpora import SPLIT_SEED, Corpus

LARGEST_TEXT = 1 << 36  # bytes

# How the text of a file is cut into sequences. Lines are sentences, their white space normalized.
CUTS: dict[str, Callable[[str], Iterable[str]]] = {
    "line": lambda text: text.split("\n"),  # str.splitlines would also cut at form feeds
    "paragraph": re.compile(r"\n(?:[ \t]*\n)+").split,
    "article": re.compile(r"^(?= = [^=\s].* = ?$)", re.MULTILINE).split,  # as WikiText begins them
    "document": lambda text: [text],
}
UNITS = tuple(CUTS)
PAIR = "pair"


@dataclass
class _Sequences:
    """The sequences of a file or a folder, and the lines of a file that they were."""

    path: Path
    texts: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    line_numbers: array[int] = field(default_factory=lambda: array("i"))
    num_blank_lines: int = 0


def read_text_corpus(
    paths: Mapping[str, Path],
    *,
    unit: str = "line",
    seed: int | None = None,
    lowercase: bool = True,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
) -> Corpus:
    """The sequences of UTF-8 files, those without a word left out.

    Each path is a file or a folder, of which all files are read but hidden ones. A file that ends
    in `.jsonl` holds an object on each line, with a `text`, or with a `prompt` and a `response`.

    Args:
        paths: `path` is what to train on; `validation_path` and `test_path` are what to evaluate
            on, instead of parts of `path`.
        unit: what a sequence is: a `line`, with its words separated by single blanks; a
            `paragraph`, which ends at a blank line; an `article`, which begins at a line
            ` = TITLE = `; a whole `document`; or a `pair`, whose response is the sequence.
        seed: of the split. None gives the usual one.
        lowercase: whether the text is lower-cased.
        validation_fraction, test_fraction: shares of the sequences of `path`.

    Raises:
        ValueError: fractions that leave nothing to train on, or a file that is missing, not UTF-8
            text, empty, or too short to be split.
    """
    _check_fractions(validation_fraction, test_fraction)
    read = {key: _read(key, path, unit, lowercase) for key, path in paths.items()}
    whole = read.pop("path")
    own = {key.removesuffix("_path"): sequences for key, sequences in read.items()}
    number = len(whole.texts)
    num_validation = 0 if "validation" in own else max(1, round(validation_fraction * number))
    num_test = 0
    if "test" not in own and test_fraction:
        num_test = max(1, round(test_fraction * number))
    num_train = number - num_validation - num_test
    if num_train < 1:
        raise ValueError(
            f"data.path={whole.path}: it holds too few {plural(unit)} to be split ({number}): "
            + ("put one on each line, at least one for each split" if unit == "line" else
               "name other files with data.validation_path and data.test_path")
        )  # fmt: skip
    order = list(range(number))
    if num_train < number:
        random.Random(SPLIT_SEED if seed is None else seed).shuffle(order)
    indices = {
        "train": order[:num_train],
        "validation": order[num_train : num_train + num_validation],
        "test": order[num_train + num_validation :],
    }
    chosen = {split: _chosen(whole, indices[split]) for split in indices} | own
    return Corpus(
        "text",
        chosen["train"].texts,
        chosen["validation"].texts,
        chosen["test"].texts,
        seed,
        unit=plural(unit),
        files={split: sequences.path for split, sequences in chosen.items()},
        line_numbers={split: sequences.line_numbers for split, sequences in chosen.items()},
        num_blank_lines=sum(sequences.num_blank_lines for sequences in (whole, *own.values())),
        prompts={split: found.prompts for split, found in chosen.items()} if whole.prompts else {},
    )


def plural(unit: str) -> str:
    """What the sequences of a unit are called."""
    return "sentences" if unit == "line" else f"{unit}s"


def _chosen(whole: _Sequences, indices: list[int]) -> _Sequences:
    numbers = whole.line_numbers
    return _Sequences(
        whole.path,
        [whole.texts[i] for i in indices],
        [whole.prompts[i] for i in indices] if whole.prompts else [],
        array("i", (numbers[i] for i in indices) if numbers else ()),
    )


def _read(key: str, path: Path, unit: str, lowercase: bool) -> _Sequences:
    found = _Sequences(path)
    for file in _files(key, path):
        if unit == PAIR:
            for prompt, response in _records(key, file, ("prompt", "response")):
                found.prompts.append(prompt.lower() if lowercase else prompt)
                found.texts.append(response.lower() if lowercase else response)
            continue
        for text in _texts(key, file):
            for number, piece in enumerate(_pieces(text, unit), start=1):
                if not (words := piece.split()):
                    found.num_blank_lines += unit == "line"
                    continue
                piece = " ".join(words) if unit == "line" else piece
                found.texts.append(piece.lower() if lowercase else piece)
                if unit == "line" and file == path:
                    found.line_numbers.append(number)
    if not found.texts:
        raise ValueError(f"data.{key}={path}: it is empty: it needs {plural(unit)}")
    return found


def _pieces(text: str, unit: str) -> Iterable[str]:
    return CUTS[unit](text.removesuffix("\n") if unit == "line" else text)


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


def _texts(key: str, file: Path) -> Iterator[str]:
    """The text of a file, or the texts of one with an object on each line."""
    with _faults_of(key, file):
        if file.suffix != ".jsonl":
            yield _text(file)
            return
    yield from (text for (text,) in _records(key, file, ("text",)))


def _records(key: str, file: Path, fields: tuple[str, ...]) -> Iterator[list[str]]:
    """The fields of the objects of a file, one on each line."""
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
            yield found


def _text(file: Path) -> str:
    """The text of a file with line ends of one kind."""
    text = read_text(file, LARGEST_TEXT).removeprefix("\ufeff")
    if "\0" in text:
        raise ValueError("it is a binary file, not text: it holds zero bytes")
    return text.replace("\r\n", "\n").replace("\r", "\n")
