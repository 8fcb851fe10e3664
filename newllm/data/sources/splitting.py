"""Texts of the user's own, cut into sequences and split into a corpus."""

from __future__ import annotations

import random
import re
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

from newllm.config.faults import no_such_option, too_small
from newllm.data.sources.corpora import SPLIT_SEED, SPLITS, Corpus

HEADING = re.compile(r"^ = [^=\s].* = ?$", re.MULTILINE)  # of an article of WikiText

# How a text is cut into sequences. Lines are sentences, their white space normalized.
CUTS: dict[str, Callable[[str], Iterable[str]]] = {
    "line": lambda text: text.split("\n"),  # str.splitlines would also cut at form feeds
    "paragraph": re.compile(r"\n(?:[ \t]*\n)+").split,
    "article": re.compile(f"(?={HEADING.pattern})", re.MULTILINE).split,
    "document": lambda text: [text],
}
PAIR = "pair"
UNITS = (*CUTS, PAIR)


def plain_text(text: str) -> str:
    """The text with line ends of one kind.

    Raises:
        ValueError: it holds zero bytes.
    """
    if "\0" in text:
        raise ValueError("it is binary, not text: it holds zero bytes")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def plural(unit: str) -> str:
    """What the sequences of a unit are called."""
    return "sentences" if unit == "line" else f"{unit}s"


@dataclass
class Sequences:
    """Sequences of one place, with their prompts if they are responses.

    Attributes:
        setting: that names the place, and its value, for messages.
        line_numbers: of the sequences in their file, if each is on a line; counted from 1.
    """

    setting: str
    texts: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    line_numbers: array[int] = field(default_factory=lambda: array("i"))
    num_blank_lines: int = 0
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def add(
        self, text: str, unit: str, lowercase: bool, line_numbers: Iterable[int] | None = None
    ) -> None:
        """Add the sequences of a text, those without a word left out.

        Args:
            text: to be cut.
            unit: one of `CUTS`.
            lowercase: whether it is lower-cased.
            line_numbers: in a file, of each line of the text. None leaves them out.
        """
        is_of_lines = unit == "line"
        text = text.removesuffix("\n") if is_of_lines else text
        for piece, number in zip(CUTS[unit](text), line_numbers or repeat(0), strict=False):
            if not (words := piece.split()):
                self.num_blank_lines += is_of_lines
                continue
            piece = " ".join(words) if is_of_lines else piece
            self.texts.append(piece.lower() if lowercase else piece)
            if is_of_lines and line_numbers:
                self.line_numbers.append(number)

    def add_pair(self, prompt: str, response: str, lowercase: bool) -> None:
        """Add a response and its prompt, unless one of them holds no word."""
        if not (prompt.strip() and response.strip()):
            self.num_blank_lines += 1
            return
        self.prompts.append(prompt.lower() if lowercase else prompt)
        self.texts.append(response.lower() if lowercase else response)

    def chosen(self, indices: list[int]) -> Sequences:
        """A part of them."""
        numbers = self.line_numbers
        return Sequences(
            self.setting,
            [self.texts[i] for i in indices],
            [self.prompts[i] for i in indices] if self.prompts else [],
            array("i", (numbers[i] for i in indices) if numbers else ()),
            path=self.path,
        )


def splitting_faults(unit: str, seed: int | None, validation: float, test: float) -> list[str]:
    """The faults of a unit, and of the seed and the shares of the evaluation splits."""
    shares = _share_faults(validation, test)
    return no_such_option("data", UNITS, unit=unit) + too_small("data", 0, seed=seed) + shares


def _share_faults(validation: float, test: float) -> list[str]:
    faults = []
    if not 0 < validation < 1:
        faults.append(f"data.validation_fraction={validation}: must lie between 0 and 1")
    if not 0 <= test < 1:
        faults.append(f"data.test_fraction={test}: must be 0 or lie between 0 and 1")
    if not faults and validation + test >= 1:
        faults.append(
            f"data.validation_fraction={validation} and data.test_fraction={test} leave nothing"
            " to train on: their sum must be below 1"
        )
    return faults


def split_corpus(
    name: str,
    whole: Sequences,
    own: Mapping[str, Sequences],
    *,
    unit: str,
    seed: int | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    remedy: str = "",
) -> Corpus:
    """A corpus of three splits.

    Args:
        name: of the corpus.
        whole: what to train on.
        own: the sequences of the evaluation splits that are no parts of `whole`.
        unit: one of `UNITS`.
        seed: of the split. None gives the usual one.
        validation_fraction, test_fraction: shares of `whole`, for splits that are not in `own`.
        remedy: what to do if there are too few sequences.

    Raises:
        ValueError: one of the places holds no sequence, or `whole` too few to be split.
    """
    for sequences in (whole, *own.values()):
        if not len(sequences):
            raise ValueError(f"{sequences.setting}: it is empty: it needs {plural(unit)}")
    number = len(whole)
    num_validation = 0 if "validation" in own else max(1, round(validation_fraction * number))
    num_test = 0
    if "test" not in own and test_fraction:
        num_test = max(1, round(test_fraction * number))
    num_train = number - num_validation - num_test
    if num_train < 1:
        raise ValueError(
            f"{whole.setting}: it holds too few {plural(unit)} to be split ({number}): {remedy}"
        )
    order = list(range(number))
    if num_train < number:
        random.Random(SPLIT_SEED if seed is None else seed).shuffle(order)
    indices = {
        "train": order[:num_train],
        "validation": order[num_train : num_train + num_validation],
        "test": order[num_train + num_validation :],
    }
    parts = {split: whole.chosen(indices[split]) for split in SPLITS} | dict(own)
    return Corpus(
        name,
        parts["train"].texts,
        parts["validation"].texts,
        parts["test"].texts,
        seed,
        unit=plural(unit),
        files={split: part.path for split, part in parts.items() if part.path},
        line_numbers={split: part.line_numbers for split, part in parts.items()},
        num_blank_lines=sum(part.num_blank_lines for part in (whole, *own.values())),
        prompts={split: part.prompts for split, part in parts.items()} if whole.prompts else {},
    )
