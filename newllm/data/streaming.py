"""Batches of a stream: documents end to end, of which every batch reads the next window.

Shape suffixes: B rows of a batch, T time, D documents, which are the N rows of a split.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from newllm.data.batch import IGNORE, Batch
from newllm.data.batching import MAX_LOGITS, MAX_POSITIONS, EvaluationBatches
from newllm.data.encoded import EncodedSplit
from newllm.data.source import Split
from newllm.data.tokenizer import PAD

START_STATES = ("kept", "zero", "drawn")
EVALUATION_WINDOW = 1024  # tokens of a longer sequence that are evaluated at once


class Stream(Split):
    """Rows that read documents end to end, a window at a time.

    A row forgets everything at the start of a document. It ends when its documents do, and later
    batches lack it. Every token is a target exactly once.

    Args:
        split: the documents.
        num_steps: T, the tokens of a window.
    """

    metrics = ("loss", "loss_known", "perplexity", "accuracy")

    def __init__(self, split: EncodedSplit, num_steps: int) -> None:
        self._split, self._num_steps = split, num_steps

    def _lay(self, order_D: Tensor, start_B: Tensor) -> None:
        """Lay the documents end to end in this order; row b begins at position `start_B[b]`.

        Rows must be ordered from long to short.
        """
        self._order_D = order_D
        self._stop_D = self._split.num_positions_N[order_D].cumsum(0)
        self._start_B = start_B
        self._length_B = start_B.diff(append=self._split.num_positions_N.sum()[None])
        assert (self._length_B.diff() <= 0).all()
        self.num_batches = -(-int(self._length_B[0]) // self._num_steps)

    def batch(self, epoch: int, number: int) -> Batch:
        """The windows of the rows that have not ended; each continues the row of its number."""
        document_BT, place_BT, is_real_BT = self._read(number)
        reset_BT = is_real_BT & (place_BT == 0)
        if number == 0:
            reset_BT[:, 0] = True  # also within a document that begins in another row
        row_B = torch.arange(len(reset_BT))
        targets_BT = self._split.ids_at(document_BT, place_BT + 1)
        is_scored_BT = is_real_BT & (place_BT >= self._num_unscored(document_BT))
        return Batch(
            tokens_BT=torch.where(is_real_BT, self._split.ids_at(document_BT, place_BT), PAD),
            targets_BT=torch.where(is_scored_BT, targets_BT, IGNORE),
            row_B=row_B,
            reset_BT=reset_BT,
            # All forget at the start of an epoch; the batch before may have had fewer rows.
            continues_B=torch.zeros_like(row_B) if number == 0 else row_B,
        )

    def target_indices(self, number: int) -> np.ndarray:
        """The indices of a batch's scored targets, row by row, among the targets of the split."""
        document_BT, place_BT, is_real_BT = self._read(number)
        index_BT = place_BT - self._num_unscored(document_BT)
        is_scored_BT = is_real_BT & (index_BT >= 0)
        return (self._split.first_target_N[document_BT] + index_BT)[is_scored_BT].numpy()

    def _num_unscored(self, document_BT: Tensor) -> Tensor:
        split = self._split
        return (split.num_positions_N - split.num_targets_N)[document_BT]

    def _read(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """The document and the place in it of each position, and which positions are real."""
        first = number * self._num_steps
        left_B = self._length_B - first
        left_B = left_B[left_B > 0]
        step_T = torch.arange(min(self._num_steps, int(left_B[0])))
        is_real_BT = step_T < left_B[:, None]
        position_BT = self._start_B[: len(left_B), None] + first + step_T
        position_BT = position_BT.clamp(max=int(self._stop_D[-1]) - 1)
        rank_BT = torch.searchsorted(self._stop_D, position_BT, right=True)
        document_BT = self._order_D[rank_BT]
        start_BT = self._stop_D[rank_BT] - self._split.num_positions_N[document_BT]
        return document_BT, position_BT - start_BT, is_real_BT


class TrainingStream(Stream):
    """All documents in an order that depends on the seed and the epoch alone, in equal rows.

    A row that begins within a document does not know the part before.

    Args:
        split: the documents.
        batch_size: B.
        num_steps: T, the tokens of a window, through which gradients are propagated.
        seed: decides all orders.
        start_state: the state that a window starts from. `kept`: the one after the window before;
            `zero`: the initial state; `drawn`: the one after the window before of another row,
            drawn at random (state passing, Buitrago Ruiz & Gu 2025, arXiv 2507.02782).
    """

    def __init__(
        self, split: EncodedSplit, batch_size: int, num_steps: int, seed: int, start_state: str
    ) -> None:
        assert start_state in START_STATES, start_state
        super().__init__(split, num_steps)
        self._batch_size, self._seed, self._start_state = batch_size, seed, start_state
        self._draw_order(0)

    def batch(self, epoch: int, number: int) -> Batch:
        if epoch != self._epoch:
            self._draw_order(epoch)
        batch = super().batch(epoch, number)
        if self._start_state == "zero":
            return batch._replace(continues_B=None)
        if self._start_state == "drawn" and number > 0:
            rng = np.random.default_rng((self._seed, epoch, number))
            return batch._replace(continues_B=torch.from_numpy(_others(len(batch.row_B), rng)))
        return batch

    def _draw_order(self, epoch: int) -> None:
        """Draw the order of the documents, and cut them into rows of equal lengths."""
        number = int(self._split.num_positions_N.sum())
        order_D = np.random.default_rng((self._seed, epoch)).permutation(len(self._split))
        length = -(-number // self._batch_size)
        self._lay(torch.from_numpy(order_D), torch.arange(0, number, length))
        self._epoch = epoch


def _others(number: int, rng: np.random.Generator) -> np.ndarray:
    """For each of some rows another one, each once; for a single row, itself."""
    order = rng.permutation(number)
    others = np.empty_like(order)
    others[order] = np.roll(order, 1)
    return others


class EvaluationStream(Stream):
    """Whole documents, in rows of similar length.

    Args:
        split: the documents.
        num_steps: T, which does not change the losses.
        num_rows: the most rows. None bounds the memory that a batch takes beside the state.
    """

    def __init__(self, split: EncodedSplit, num_steps: int, num_rows: int | None = None) -> None:
        super().__init__(split, num_steps)
        if num_rows is None:
            num_rows = min(MAX_POSITIONS, MAX_LOGITS // split.num_ids) // num_steps
        length_D = split.num_positions_N.tolist()
        rows: list[list[int]] = [[] for _ in range(max(1, min(num_rows, len(length_D))))]
        lengths = [0] * len(rows)
        for document in sorted(range(len(length_D)), key=lambda d: -length_D[d]):
            shortest = lengths.index(min(lengths))
            rows[shortest].append(document)
            lengths[shortest] += length_D[document]
        by_length = sorted(range(len(rows)), key=lambda row: -lengths[row])
        length_B = torch.tensor([lengths[row] for row in by_length])
        order = [document for row in by_length for document in rows[row]]
        self._lay(torch.tensor(order, dtype=torch.int64), length_B.cumsum(0) - length_B)


def evaluation_batches(
    split: EncodedSplit, in_windows: bool = True
) -> EvaluationBatches | EvaluationStream:
    """Batches to evaluate the rows of a split with, long ones window by window if asked for.

    The memory that a batch takes beside the state then does not depend on the longest row.
    """
    longest = max(split.num_positions_N.tolist(), default=0)
    is_stream = in_windows and longest > EVALUATION_WINDOW
    return EvaluationStream(split, EVALUATION_WINDOW) if is_stream else EvaluationBatches(split)
