"""The data of a run: a source with named splits of batches.

To add data, subclass `Source` and `Split`; see docs/extending.md.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from newllm.data.batch import IGNORE, Batch
from newllm.data.cache import Arrays
from newllm.data.encoded import EncodedSplit
from newllm.data.tokenizer import PAD, Tokenizer

VALIDATION, TEST = "validation", "test"
TAKEN = {"train", "val"}  # prefixes of the metrics of training and of `validation`
NAME = re.compile(r"\w[\w.+-]*")  # of splits, slices and references, which name metrics


class Split(ABC):
    """Batches by number.

    A batch depends on nothing but the epoch and its number, so that every run has the same batches
    and an interrupted run resumes at any of them.

    Attributes:
        num_batches: batches in an epoch. None for an endless split, whose epoch is always 0.
        metrics: logged for an evaluation split, by names in `newllm.training.metrics`.
        slices: names of the parts of the split that `Batch.slice_B` refers to. The metrics of each
            are logged as `METRIC/SLICE`.
        while_training: whether an evaluation split is evaluated with every validation, or only
            once, with the best weights. `test` never is.
        num_answers: kinds of targets, for the metric `bits_recalled`. None if the targets of a row
            are not items that are independent, uniform and read before the first is asked for.
    """

    num_batches: int | None = None
    metrics: tuple[str, ...] = ("loss", "perplexity", "accuracy")
    slices: tuple[str, ...] = ()
    while_training: bool = True
    num_answers: int | None = None

    @abstractmethod
    def batch(self, epoch: int, number: int) -> Batch:
        """The batch of a number, from 0, in an epoch, from 0."""

    def __len__(self) -> int:
        assert self.num_batches is not None, "an endless split has no length"
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the first epoch."""
        return (self.batch(0, number) for number in range(len(self)))


class Source(ABC):
    """Data to train and evaluate on.

    A subclass sets the attributes that have no default in `setup` or before.

    Attributes:
        name: shown in tables and figures.
        vocabulary_size: tokens are 0 ... vocabulary_size - 1; `<PAD>` is 0.
        max_length: positions of the longest row.
        train: what the model is trained on.
        evaluation: finite splits to evaluate on. `validation` is required: its loss decides which
            weights are the best. `test` is evaluated once, with these weights. Any other split is
            evaluated once with these weights and, if `Split.while_training`, with every validation.
        tokenizer: translates between tokens and text, if the tokens stand for text.
        unit: what the sequences of `encoded` are called, in the plural.
        digest: identifies the content of the data, if it does not follow from the configuration.
    """

    name: str
    vocabulary_size: int
    max_length: int
    train: Split
    evaluation: Mapping[str, Split]
    tokenizer: Tokenizer | None = None
    unit: str = "sequences"
    digest: str | None = None

    def setup(self) -> None:  # noqa: B027  (most sources need neither this nor `write`)
        """Prepare the splits without writing anything. A second call does nothing.

        Raises:
            ValueError: the data cannot be used, with a line for each fault.
        """

    def write(self) -> None:  # noqa: B027
        """Write files for the user or the next run. Called when the run is about to start."""

    def summary(self) -> str:
        """The data in one line."""
        return f"{self.name}: vocabulary {self.vocabulary_size:,}"

    def card(self) -> dict[str, str]:
        """The figures that a loss on the data is judged by, as labels and values."""
        return {"vocabulary": f"{self.vocabulary_size:,}"}

    def announce(self, stage: str) -> None:  # noqa: B027
        """Print what is about to be computed if it takes a while."""

    def cached(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """What `compute` returns, or returned to an earlier process for the same data."""
        return compute()

    def encoded(self, split: str) -> EncodedSplit | None:
        """The sequences of `train` or an evaluation split, if its rows are cut from some.

        The references then include counts of n-grams.
        """
        return None

    def texts(self, split: str) -> Sequence[str] | None:
        """The text that the scored targets of `encoded` stand for, one for each sequence."""
        return None

    def num_bytes(self, split: str) -> int | None:
        """Bytes of text that the targets of `encoded` stand for, if each token stands for some."""
        encoded = self.encoded(split)
        bytes_V = None if self.tokenizer is None else self.tokenizer.bytes_V
        if encoded is None or bytes_V is None:
            return None
        return int(bytes_V @ encoded.target_counts(len(bytes_V)))

    @property
    def overlap_share(self) -> float:
        """Share of the validation sequences that are in the training split as well."""
        return 0.0

    def num_incomplete(self) -> Mapping[str, int]:
        """Sequences of each split that are dropped or truncated for their length."""
        return {}

    def next_token_distributions(self, split: str) -> list[list[dict[int, float]]] | None:
        """The exact probabilities of the next tokens, by sequence and position, if known."""
        return None

    def reference_losses(self, split: str) -> Mapping[str, float | np.ndarray]:
        """Reference losses for an evaluation split by name, in nats.

        A number is the mean over the targets; an array has one loss for each target of `encoded`.
        """
        return {}

    def oracle_loss(self, split: str) -> float | None:
        """The loss of the distribution that an evaluation split was drawn from, if known."""
        return None

    @property
    def entropy_floor(self) -> float | None:
        """The expectation of `oracle_loss` of validation and test split, if known."""
        return None


def source_faults(source: Source) -> Iterator[str]:
    """The faults of a source and of its first batches."""
    needed = ("name", "vocabulary_size", "max_length", "train", "evaluation")
    if missing := [name for name in needed if not hasattr(source, name)]:
        yield f"does not set {', '.join(missing)}"
        return
    if VALIDATION not in source.evaluation:
        yield f"has no evaluation split {VALIDATION}"
    for name in sorted(TAKEN & source.evaluation.keys()):
        yield f"its evaluation split {name} would share {name}/loss with another; rename it"
    for name, split in {"train": source.train, **source.evaluation}.items():
        if split.num_batches is None and split is not source.train:
            yield f"its evaluation split {name} is endless; set num_batches"
        elif split.num_batches != 0 and (fault := _batch_fault(source, split.batch(0, 0))):
            yield f"{name}: {fault}"
        yield from _name_faults("split", [name])
        yield from _name_faults("slice", split.slices)


def reference_faults(references: Mapping[str, float]) -> Iterator[str]:
    """The faults of the names and losses of a source's references."""
    yield from _name_faults("reference", references)
    for name, loss in references.items():
        if not (isinstance(loss, int | float) and math.isfinite(loss)):
            yield f"its reference {name} is {loss!r}, but must be a finite number"


def _name_faults(kind: str, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if not NAME.fullmatch(name):
            yield (
                f"its {kind} {name!r} is not a valid name; use letters, digits and _ . + -, "
                "starting with a letter, a digit or _"
            )


def _batch_fault(source: Source, batch: Batch) -> str | None:
    tokens_BT, targets_BT = batch.tokens_BT, batch.targets_BT
    if tokens_BT.shape != targets_BT.shape or len(batch.row_B) != len(tokens_BT):
        return "the shapes of tokens_BT, targets_BT and row_B of a batch do not match"
    if not batch.scored_BT.any():
        return "its first batch has no target to score"
    if (batch.scored_BT & (tokens_BT == PAD)).any():
        return f"it has a target at <PAD> (token {PAD}), which is not scored; use IGNORE"
    for kind, ids in (("tokens", tokens_BT), ("targets", targets_BT[targets_BT != IGNORE])):
        if int(ids.min()) < 0 or int(ids.max()) >= source.vocabulary_size:
            return f"its {kind} are not all from 0 to vocabulary_size - 1"
    return None
