"""Datasets of the Hugging Face Hub, or folders laid out like one, read as streams."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from newllm.config.faults import no_such_option, too_small
from newllm.data.reading import one_line
from newllm.data.sources.corpora import SPLITS, Corpus
from newllm.data.sources.corpus_source import CorpusSource
from newllm.data.sources.splitting import (
    HEADING,
    PAIR,
    UNITS,
    Sequences,
    fraction_faults,
    plural,
    split_corpus,
)

if TYPE_CHECKING:
    from datasets import DatasetBuilder


class HubSource(CorpusSource):
    """A dataset with columns of text, or of prompts and responses.

    Records are read in order, and only as many as `train_sentences`, `validation_sentences` and
    `test_sentences` ask for. The vocabulary is therefore that of the sequences that are kept.

    Args:
        name: of the dataset on the Hub, such as `Salesforce/wikitext`, or a folder of Parquet, JSON
            Lines, CSV or text files.
        subset: of a dataset that has several.
        revision: a branch, tag or commit of the dataset. None takes the newest.
        text_column: of the text.
        prompt_column, response_column: of pairs.
        train_split, validation_split, test_split: names of its splits. None takes the split of
            this name, or a share of the training split if there is none.
        unit: what a sequence is: the text of a record (`document`), a `line` or `paragraph` of
            one, an `article` of WikiText, whose records are lines, or a `pair`.
        lowercase: whether text is lower-cased. None lower-cases lines alone.
        seed: of the split. None gives the usual one.
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
        faults = no_such_option("data", UNITS, unit=unit) + too_small("data", 0, seed=seed)
        faults += fraction_faults(validation_fraction, test_fraction)
        if not name:
            faults.append("data=hub: needs data.name=NAME, such as Salesforce/wikitext")
        lowercase = unit == "line" if lowercase is None else lowercase
        self._dataset, self._subset, self._revision = str(name), subset, revision
        shown = Path(self._dataset).name if Path(self._dataset).is_dir() else self._dataset
        super().__init__(shown, plural(unit), lowercase, faults, **settings)
        self._names = dict(zip(SPLITS, (train_split, validation_split, test_split), strict=True))
        self._columns = [prompt_column, response_column] if unit == PAIR else [text_column]
        self._unit = unit
        self._splitting: dict[str, Any] = {
            "seed": seed,
            "validation_fraction": validation_fraction,
            "test_fraction": test_fraction,
        }

    def read(self) -> Corpus:
        """Read as many records as are asked for."""
        with _faults_of(self._dataset):
            streams = self._builder.as_streaming_dataset()
            names = self._names_in(streams)
            found = {}
            for split, name in names.items():
                self.announce(f"reading {name} of {self._dataset}")
                found[split] = self._sequences(streams[name], self._num_wanted(split, names))
        whole = found.pop("train")
        remedy = "choose splits with data.validation_split and data.test_split"
        return split_corpus(
            self.name, whole, found, unit=self._unit, remedy=remedy, **self._splitting
        )

    def text_settings(self) -> dict[str, Any]:
        """The version of the dataset, and how it is read."""
        return {
            "dataset": [self._dataset, self._builder.config_id, self._builder.hash],
            "columns": self._columns,
            "splits": self._names,
            "limits": self._limits,
            "unit": self._unit,
            **self._splitting,
        }

    def is_large(self) -> bool:
        """Always, since it may have to be downloaded."""
        return True

    @cached_property
    def _builder(self) -> DatasetBuilder:
        try:
            import datasets
        except ImportError as error:
            raise ValueError('data=hub: needs the extra: pip install "newllm[text]"') from error
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # faults are told by the caller
        with _faults_of(self._dataset):
            return datasets.load_dataset_builder(
                self._dataset, self._subset, revision=self._revision
            )

    def _names_in(self, streams: Collection[str]) -> dict[str, str]:
        """The name of each split in the dataset, without the evaluation splits that it lacks."""
        names = {split: name or split for split, name in self._names.items()}
        for split, name in names.items():
            if name not in streams and (self._names[split] or split == "train"):
                there = ", ".join(map(str, streams))
                raise ValueError(f"it has no split {name} (data.{split}_split); splits: {there}")
        return {split: name for split, name in names.items() if name in streams}

    def _num_wanted(self, split: str, names: Collection[str]) -> int | None:
        """Sequences to read of a split: the training split also has the shares of the others."""
        limit = self._limits[split]
        if limit is None or split != "train":
            return limit
        shares = [self._splitting[f"{other}_fraction"] for other in SPLITS if other not in names]
        return math.ceil(limit / (1 - sum(shares))) + len(shares)

    def _sequences(self, records: Iterable[dict[str, Any]], num_wanted: int | None) -> Sequences:
        found = Sequences(f"data.name={self._dataset}")
        fields = self._fields(records)
        if self._unit == "article":
            fields = ([article] for article in _articles(text for (text,) in fields))
        for texts in fields:
            if num_wanted is not None and len(found) >= num_wanted:
                break
            if self._unit == PAIR:
                prompt, response = texts
                found.add_pair(prompt, response, self._lowercase)
            else:
                found.add(texts[0], self._unit, self._lowercase)
        return found

    def _fields(self, records: Iterable[dict[str, Any]]) -> Iterator[list[str]]:
        """The columns of text of each record."""
        for number, record in enumerate(records, start=1):
            for column in self._columns:
                if not isinstance(record.get(column), str):
                    there = ", ".join(record)
                    raise ValueError(
                        f"record {number} has no text in a column {column}; columns: {there}"
                    )
            yield [record[column] for column in self._columns]


def _articles(lines: Iterable[str]) -> Iterator[str]:
    """The lines from each heading to the next as one text."""
    article: list[str] = []
    for line in lines:
        if HEADING.match(line) and article:
            yield "".join(article)
            article = []
        article.append(line)
    yield "".join(article)


@contextlib.contextmanager
def _faults_of(name: str) -> Iterator[None]:
    """Turn the many kinds of faults of reading a dataset into one."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"data.name={name}: {one_line(error)}") from error
