"""Datasets of the Hugging Face Hub, or folders laid out like one, read as streams."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newllm.config.faults import raise_faults, unused
from newllm.data.reading import is_there, one_line
from newllm.data.sources.corpora import SPLIT_SEED, SPLITS, Corpus
from newllm.data.sources.corpus_source import CorpusSource
from newllm.data.sources.splitting import (
    HEADING,
    PAIR,
    Sequences,
    plain_text,
    plural,
    split_corpus,
    splitting_faults,
)
from newllm.data.sources.text import text_digest

if TYPE_CHECKING:
    from datasets import DatasetBuilder

ON_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # a name alone would be a reader of `datasets`
NO_SPLIT = "none"
COLUMNS = {"text": "text_column", "prompt": "prompt_column", "response": "response_column"}


class HubSource(CorpusSource):
    """A dataset with columns of text, or of prompts and responses.

    Records are read in order, and only until there are as many sequences as `train_sentences`,
    `validation_sentences` and `test_sentences` ask for. The vocabulary is that of the training
    sequences that were read.

    Args:
        name: of the dataset on the Hub, such as `Salesforce/wikitext`, or a folder of Parquet, JSON
            Lines, CSV or text files.
        subset: of a dataset that has several.
        revision: a branch, tag or commit of a dataset on the Hub. None takes the newest.
        text_column: of the text.
        prompt_column, response_column: of pairs.
        train_split: None takes `train`.
        validation_split, test_split: names of splits of the dataset. None takes the split of this
            name if there is one. `none`, and a dataset without it, gives a random share of the
            records of the training split, which limits do not change.
        unit: what a sequence is: the text of a record (`document`), a `line` or `paragraph` of
            one, an `article` of WikiText, whose records are lines, or a `pair`.
        lowercase: whether text is lower-cased. None lower-cases lines alone.
        seed: of the shares. None gives the usual ones.
        validation_fraction, test_fraction: shares of the training split.
        settings: of `CorpusSource`.
    """

    def __init__(
        self,
        name: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        text_column: str = "text",
        prompt_column: str = "prompt",
        response_column: str = "response",
        train_split: str | None = None,
        validation_split: str | None = None,
        test_split: str | None = None,
        unit: str = "document",
        lowercase: bool | None = None,
        seed: int | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        **settings: Any,
    ) -> None:
        faults = splitting_faults(unit, seed, validation_fraction, test_fraction)
        faults += _name_faults(name, revision)
        columns = dict(zip(COLUMNS, (text_column, prompt_column, response_column), strict=True))
        used = ["prompt", "response"] if unit == PAIR else ["text"]
        faults += [
            f"data.{COLUMNS[what]}={column}: is not used with data.unit={unit}"
            for what, column in columns.items()
            if what not in used and column != what
        ]
        lowercase = unit == "line" if lowercase is None else lowercase
        self._dataset, self._subset, self._revision = str(name), subset, revision
        self._is_folder = is_there(self._dataset)
        shown = Path(self._dataset).name if self._is_folder else self._dataset
        shown = f"{shown} {subset}" if subset else shown
        super().__init__(shown, plural(unit), lowercase, faults, **settings)
        self._names = dict(zip(SPLITS, (train_split, validation_split, test_split), strict=True))
        self._columns = [columns[what] for what in used]
        self._unit, self._seed = unit, seed
        self._fractions = {"validation": validation_fraction, "test": test_fraction}

    def read(self) -> Corpus:
        """Read as many records as are asked for."""
        with _faults_of(self._dataset):
            streams = self._builder.as_streaming_dataset()
        names = self._names_in(streams)
        found: dict[str, Sequences] = {}
        for split, name in names.items():
            self.announce(f"reading {name} of {self._dataset}")
            records = self._fields(name, streams[name])
            shares = {split: 1.0} if split != "train" else self._shares(names)
            found |= self._sequences(name, records, shares)
        whole = found.pop("train")
        return split_corpus(self.name, whole, found, unit=self._unit, test_fraction=0.0)

    def text_settings(self) -> dict[str, Any]:
        """The version of the dataset, and how it is read."""
        builder = self._builder
        files = text_digest({"name": Path(self._dataset)}) if self._is_folder else builder.hash
        return {
            "dataset": [self._dataset, builder.config_id, files],
            "columns": self._columns,
            "splits": self._names,
            "limits": self._limits,
            "unit": self._unit,
            "seed": self._seed,
            "fractions": self._fractions,
        }

    def is_large(self) -> bool:
        """Always, since it may have to be downloaded."""
        return True

    def card(self) -> dict[str, str]:
        """The usual card, and what was read."""
        subset = f", subset {self._subset}" if self._subset else ""
        revision = "" if self._is_folder else f", revision {self._revision or 'newest'}"
        return super().card() | {"dataset": f"{self._dataset}{subset}{revision}"}

    @cached_property
    def _builder(self) -> DatasetBuilder:
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise ValueError('data=hub: needs the extra: pip install "newllm[text]"') from error
        # Faults are told by the caller.
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)
        logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
        with _faults_of(self._dataset):
            builder = datasets.load_dataset_builder(
                self._dataset, self._subset, revision=self._revision
            )
            folder = Path(self._dataset).resolve()
            for file in (file for files in builder.config.data_files.values() for file in files):
                if self._is_folder and folder not in Path(str(file)).resolve().parents:
                    raise ValueError(f"it reads a file outside the folder: {file}")
        return builder

    def _names_in(self, streams: Collection[str]) -> dict[str, str]:
        """The name of each split in the dataset, without the evaluation splits that it lacks."""
        names = {split: name or split for split, name in self._names.items()}
        for split, name in names.items():
            is_asked_for = self._names[split] not in (None, NO_SPLIT) or split == "train"
            if name not in streams and is_asked_for:
                there = ", ".join(map(str, streams))
                raise ValueError(f"data.{split}_split={name}: no such split; splits: {there}")
        found = {split: name for split, name in names.items() if name in streams}
        for split in found.keys() & self._fractions.keys():
            fraction = {f"{split}_fraction": self._fractions[split]}
            raise_faults(unused("data", f"the split {found[split]}", HubSource, **fraction))
        for first, second in itertools.combinations(found, 2):
            if found[first] == found[second]:
                chosen, other = (second, first) if self._names[second] else (first, second)
                raise ValueError(
                    f"data.{chosen}_split={found[chosen]}: is the {other} split as well; choose "
                    f"another data.{second}_split, or {NO_SPLIT} for a share of the training split"
                )
        return found

    def _shares(self, names: Collection[str]) -> dict[str, float]:
        """The share of the training split that each split takes, `train` last."""
        shares = {split: share for split, share in self._fractions.items() if split not in names}
        return {**shares, "train": 1 - sum(shares.values())}

    def _sequences(
        self, name: str, records: Iterable[list[str]], shares: dict[str, float]
    ) -> dict[str, Sequences]:
        """The sequences of a split of the dataset, or of the splits that share its records."""
        rng = random.Random(SPLIT_SEED if self._seed is None else self._seed)
        splits, weights = list(shares), list(shares.values())
        place = f"data.name={self._dataset}: split {name}"
        found = {
            split: Sequences(place if len(shares) == 1 else f"{place}, the share for {split}")
            for split in splits
            if shares[split] > 0
        }
        for texts in records:
            (split,) = rng.choices(splits, weights)
            if self._is_full(split, found[split]):
                if all(self._is_full(*each) for each in found.items()):
                    break
            elif self._unit == PAIR:
                found[split].add_pair(texts[0], texts[1], self._lowercase)
            else:
                unit = "document" if self._unit == "article" else self._unit
                found[split].add(texts[0], unit, self._lowercase)
        return found

    def _is_full(self, split: str, sequences: Sequences) -> bool:
        limit = self._limits[split]
        return limit is not None and len(sequences) >= limit

    def _fields(self, split: str, records: Iterable[dict[str, Any]]) -> Iterator[list[str]]:
        """The columns of text of each record, or of the lines of an article."""
        fields = self._records(split, records)
        if self._unit == "article":
            return ([article] for article in _articles(text for (text,) in fields))
        return fields

    def _records(self, split: str, records: Iterable[dict[str, Any]]) -> Iterator[list[str]]:
        iterator = iter(records)
        for number in itertools.count(1):
            with _faults_of(self._dataset):
                record = next(iterator, None)
                if record is None:
                    return
                texts = [self._field(split, number, record, name) for name in self._columns]
            yield texts

    def _field(self, split: str, number: int, record: dict[str, Any], column: str) -> str:
        place = f"record {number} of split {split}"
        if column not in record:
            raise ValueError(f"{place} has no column {column}; columns: {', '.join(record)}")
        if not isinstance(text := record[column], str):
            kind = "null" if text is None else "not text"
            raise ValueError(f"{place}: its column {column} is {kind}")
        return plain_text(text)


def _name_faults(name: str | None, revision: str | None) -> list[str]:
    if not name:
        return ["data=hub: needs data.name=NAME, such as Salesforce/wikitext"]
    if not is_there(name):
        told = "is neither a folder nor the name of a dataset on the Hub (OWNER/NAME)"
        return [] if ON_HUB.fullmatch(name) else [f"data.name={one_line(name)}: {told}"]
    if not Path(name).is_dir():
        return [f"data.name={name}: is a file; give its folder, or read it with data=text"]
    return [f"data.revision={revision}: is not used with a folder"] if revision else []


def _articles(lines: Iterable[str]) -> Iterator[str]:
    """The lines from each heading to the next as one text."""
    article: list[str] = []
    for line in lines:
        if HEADING.match(line) and article:
            yield "".join(article)
            article = []
        article.append(line if line.endswith("\n") or not line else f"{line}\n")
    yield "".join(article)


@contextlib.contextmanager
def _faults_of(name: str) -> Iterator[None]:
    """Turn the many kinds of faults of reading a dataset into one."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"data.name={name}: {one_line(error)}") from error
