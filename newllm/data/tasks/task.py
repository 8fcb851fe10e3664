"""Tasks: rows that a generator draws, scored where the answer is known.

Shape suffixes: B rows of a batch, T time.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from newllm.config.faults import raise_faults, too_small
from newllm.data.batch import IGNORE, Batch
from newllm.data.source import TEST, VALIDATION, Source, Split
from newllm.data.tokenizer import NUM_SPECIALS

FIRST_TOKEN = NUM_SPECIALS
NOT_SCORED = -1  # in `Rows.answers_BT`


class Rows(NamedTuple):
    """Rows of one length.

    Attributes:
        symbols_BT: what is read, from 0.
        answers_BT: the answer after each symbol, from 0; `NOT_SCORED` where there is none.
        slice_B: the slice of each row, an index into `Task.slices`; None for a task without.
    """

    symbols_BT: np.ndarray
    answers_BT: np.ndarray
    slice_B: np.ndarray | None = None


class Task(Source):
    """A task with endless training rows and an evaluation split for each length.

    Every batch is drawn from its own number, so that training never repeats a row and resumes
    anywhere. All rows of a batch have one length. `validation` and `test` have the longest training
    length; `length_N` is evaluated once, with the best weights.

    Symbols and answers share one vocabulary after the special tokens.

    Attributes:
        slices: names of the slices that `Rows.slice_B` refers to.
        least_length: the shortest length with an answer in some row. A subclass for which it
            depends on a setting sets it before it calls this constructor.
        answers_are_items: whether the answers of a row are independent, uniform items that are
            read before the first is asked for. `bits_recalled` is then reported.

    Args:
        name: of the task.
        num_symbols: kinds of symbols and answers together.
        num_answers: kinds of answers; guessing has the loss ln(num_answers).
        lengths: the shortest and the longest training length. What a length counts is up to the
            task.
        evaluation_lengths: the lengths of the other evaluation splits.
        batch_tokens: tokens of a training batch; a batch of short rows has more of them.
        max_rows: the most rows of a training batch.
        evaluation_rows: rows of each evaluation split.
        curriculum: training batches over which the longest length grows, geometrically, from the
            shortest; 0 draws from all lengths at once.
        max_length: the most positions that a model is made for; None takes those of the longest
            row.
        seed: decides all rows. Evaluation rows differ from training rows for every seed.

    Raises:
        ValueError: a setting is impossible, with a line for each fault.
    """

    slices: tuple[str, ...] = ()
    least_length = 1
    answers_are_items = False

    def __init__(
        self,
        name: str,
        num_symbols: int,
        num_answers: int,
        /,
        lengths: Sequence[int],
        evaluation_lengths: Sequence[int] = (),
        batch_tokens: int = 2048,
        max_rows: int = 1024,
        evaluation_rows: int = 256,
        curriculum: int = 0,
        max_length: int | None = None,
        seed: int = 1,
    ) -> None:
        faults = too_small(
            "data", 1, batch_tokens=batch_tokens, max_rows=max_rows, evaluation_rows=evaluation_rows
        )
        faults += too_small("data", 0, curriculum=curriculum, seed=seed)
        if len(lengths) != 2 or not self._are_lengths(lengths) or lengths[0] > lengths[1]:
            faults.append(
                f"data.lengths={[*lengths]}: must be [SHORTEST,LONGEST], from {self.least_length}"
            )
        if not self._are_lengths(evaluation_lengths):
            faults.append(
                f"data.evaluation_lengths={[*evaluation_lengths]}: must be whole numbers "
                f"from {self.least_length}"
            )
        raise_faults(faults)
        longest = max(*lengths, *evaluation_lengths)
        num_positions = self.num_positions(longest)
        if max_length is not None and max_length < num_positions:
            raise ValueError(
                f"data.max_length={max_length}: a row of length {longest} has "
                f"{num_positions} positions"
            )
        self.name = name
        self.vocabulary_size = FIRST_TOKEN + num_symbols
        self.num_answers = num_answers
        self.seed = seed
        self.curriculum = curriculum
        self.shortest, self.longest = lengths
        self.max_length = max_length or num_positions
        self.train = TrainingRows(self, batch_tokens, max_rows)
        self.evaluation = {
            VALIDATION: EvaluationRows(self, self.longest, evaluation_rows, 1, while_training=True),
            TEST: EvaluationRows(self, self.longest, evaluation_rows, 2),
        } | {
            f"length_{length}": EvaluationRows(self, length, evaluation_rows, 3)
            for length in evaluation_lengths
        }

    @abstractmethod
    def draw(self, rng: np.random.Generator, num_rows: int, length: int) -> Rows:
        """Rows of a length, drawn independently."""

    @abstractmethod
    def information(self, length: int) -> float:
        """Bits to carry from one position to the next, where exact answers need most.

        That is log2 of the number of pasts to tell apart. Two pasts of one length are told apart
        if the same symbols can follow both and then have different answers.
        """

    def num_positions(self, length: int) -> int:
        """Positions of a row of a length."""
        return length

    def _are_lengths(self, values: Sequence[Any]) -> bool:
        return all(isinstance(value, int) and value >= self.least_length for value in values)

    def reference_losses(self, split: str) -> dict[str, float]:
        """The loss of guessing among the answers."""
        return {"guess": math.log(self.num_answers)}

    def batch(self, key: Sequence[int], num_rows: int, length: int) -> Batch:
        """A batch that depends on the seed and the key alone."""
        rows = self.draw(np.random.default_rng((self.seed, *key)), num_rows, length)
        is_scored_BT = rows.answers_BT != NOT_SCORED
        targets_BT = np.where(is_scored_BT, rows.answers_BT + FIRST_TOKEN, IGNORE)
        return Batch(
            tokens_BT=torch.from_numpy(rows.symbols_BT + FIRST_TOKEN),
            targets_BT=torch.from_numpy(targets_BT),
            row_B=torch.arange(num_rows),
            slice_B=None if rows.slice_B is None else torch.from_numpy(rows.slice_B),
        )


class TaskSplit(Split):
    """Rows of a task."""

    metrics: tuple[str, ...] = ("loss", "accuracy", "accuracy_sequence")

    def __init__(self, task: Task) -> None:
        self._task = task
        self.slices = task.slices
        if task.answers_are_items:
            self.num_answers = task.num_answers
            self.metrics = (*self.metrics, "bits_recalled")


class TrainingRows(TaskSplit):
    """Fresh rows without end; the length of a batch is drawn from those of the curriculum."""

    def __init__(self, task: Task, batch_tokens: int, max_rows: int) -> None:
        super().__init__(task)
        self._batch_tokens, self._max_rows = batch_tokens, max_rows

    def batch(self, epoch: int, number: int) -> Batch:
        """The batch of a number."""
        length = self.length(number)
        num_rows = self._batch_tokens // self._task.num_positions(length)
        return self._task.batch((0, number), min(max(1, num_rows), self._max_rows), length)

    def length(self, number: int) -> int:
        """The length of a batch: the longest one so far, or in three of ten batches a shorter."""
        task = self._task
        growth = min(1.0, (number + 1) / task.curriculum) if task.curriculum else 1.0
        longest = round(task.shortest * (task.longest / task.shortest) ** growth)
        rng = np.random.default_rng((task.seed, 4, number))
        is_longest = task.curriculum and rng.random() < 0.7
        return longest if is_longest else int(rng.integers(task.shortest, longest + 1))


class EvaluationRows(TaskSplit):
    """A fixed number of rows of one length, in batches of about 32,768 positions."""

    MAX_POSITIONS = 32_768

    def __init__(
        self, task: Task, length: int, num_rows: int, kind: int, while_training: bool = False
    ) -> None:
        super().__init__(task)
        self.while_training = while_training
        self._key, self._length, self._num_rows = (kind, length), length, num_rows
        self._batch_rows = min(num_rows, max(1, self.MAX_POSITIONS // task.num_positions(length)))
        self.num_batches = -(-num_rows // self._batch_rows)

    def batch(self, epoch: int, number: int) -> Batch:
        """The batch of a number, the same in every epoch."""
        num_rows = min(self._batch_rows, self._num_rows - number * self._batch_rows)
        batch = self._task.batch((*self._key, number), num_rows, self._length)
        return batch._replace(row_B=batch.row_B + number * self._batch_rows)
