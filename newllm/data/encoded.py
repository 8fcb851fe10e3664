"""The sequences of a split, encoded: sentences or documents.

Shape suffixes: B batch, T time, D sequences of a split, N its rows, S all its tokens.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from newllm.data.batch import IGNORE, Batch
from newllm.data.tokenizer import BOS, PAD

BLOCK = 1 << 20  # tokens processed at once


class EncodedSplit:
    """The sequences of one split, end to end in one array, and the rows that models read.

    A sequence is a row, or is cut into rows of `max_positions`. The first token of a later row is
    the last one of the row before it, so that every token is a target exactly once.

    Args:
        ids_S: the token ids of all sequences, `<BOS>` and `<EOS>` included.
        length_D: the number of ids of each sequence.
        max_positions: the most positions of a row. None makes each sequence one row.
        num_unscored_D: the first targets of each sequence that are not scored, as those of a
            prompt. None scores all targets. Such sequences cannot be cut.

    Attributes:
        num_positions_N: of each row. A row of n tokens takes n - 1 positions: its last token is
            only a target.
        num_targets_N: scored targets of each row.
        first_target_N: the index of the first target of each row among all targets.
        sequence_N: the sequence that each row belongs to.
        num_ids: the largest id and 1; at most the size of the vocabulary.
    """

    def __init__(
        self,
        ids_S: np.ndarray,
        length_D: np.ndarray,
        max_positions: int | None = None,
        num_unscored_D: np.ndarray | None = None,
    ) -> None:
        assert length_D.sum() == len(ids_S)
        assert max_positions is None or num_unscored_D is None
        largest = int(ids_S.max()) if len(ids_S) else 0
        # Unsigned ids are small already and may be mapped from a file.
        smallest = ids_S.dtype if ids_S.dtype.kind == "u" else np.min_scalar_type(largest)
        self._ids_S = ids_S.astype(smallest, copy=False)
        self.num_ids = largest + 1
        self._length_D = torch.from_numpy(length_D.astype(np.int64))
        self._start_D = self._length_D.cumsum(0) - self._length_D
        self._max_positions, self._num_unscored_D = max_positions, num_unscored_D

        longest = max_positions or len(ids_S) or 1
        num_rows_D = (self._length_D - 2) // longest + 1
        self.sequence_N = torch.arange(len(length_D)).repeat_interleave(num_rows_D)
        first_row_D = num_rows_D.cumsum(0) - num_rows_D
        place_N = torch.arange(len(self.sequence_N)) - first_row_D[self.sequence_N]
        self._start_N = self._start_D[self.sequence_N] + place_N * longest
        left_N = self._length_D[self.sequence_N] - 1 - place_N * longest
        self.num_positions_N = left_N.clamp(max=longest)
        unscored = 0 if num_unscored_D is None else torch.from_numpy(num_unscored_D.astype(int))
        self.num_targets_N = self.num_positions_N - unscored
        self.first_target_N = self.num_targets_N.cumsum(0) - self.num_targets_N

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.num_positions_N)

    def __getitem__(self, index: int) -> Tensor:
        """The ids of one row; of a whole sequence, `<BOS>` and `<EOS>` included. int64."""
        start = int(self._start_N[index])
        stop = start + int(self.num_positions_N[index]) + 1
        return torch.from_numpy(self._ids_S[start:stop].astype(np.int64))

    @property
    def num_sequences(self) -> int:
        """Sentences or documents in the split."""
        return len(self._length_D)

    @property
    def rows_are_sequences(self) -> bool:
        """Whether no sequence is cut into several rows."""
        return len(self) == self.num_sequences

    @property
    def num_targets(self) -> int:
        """Scored targets in the split, `<EOS>` counted."""
        return int(self.num_targets_N.sum())

    @property
    def targets(self) -> Tensor:
        """All scored targets in order, without padding. int32."""
        return torch.from_numpy(self.previous(0))

    def target_counts(self, vocabulary_size: int) -> np.ndarray:
        """How often each token is a scored target. int64."""
        counts_V = np.zeros(vocabulary_size, np.int64)
        for start in range(0, len(self._ids_S), BLOCK):
            here = slice(start, start + BLOCK)
            targets_S = self._ids_S[here][self._is_target_S[here]]
            counts_V += np.bincount(targets_S, minlength=vocabulary_size)
        return counts_V

    @property
    def different_ids(self) -> set[int]:
        """The set of tokens that occur, with `<BOS>`."""
        occurs_V = np.zeros(self.num_ids, bool)
        for start in range(0, len(self._ids_S), BLOCK):
            occurs_V[self._ids_S[start : start + BLOCK]] = True
        return set(np.flatnonzero(occurs_V).tolist())

    def cut(self, max_positions: int) -> EncodedSplit:
        """The same sequences in rows of at most `max_positions`, unless they cannot be cut."""
        if self._num_unscored_D is not None or int(self.num_positions_N.max()) <= max_positions:
            return self
        return EncodedSplit(self._ids_S, self._length_D.numpy(), max_positions)

    def head(self, num_targets: int) -> EncodedSplit:
        """The first rows that have at most `num_targets` targets together, at least one."""
        if self.num_targets <= num_targets:
            return self
        number = max(1, int((self.num_targets_N.cumsum(0) <= num_targets).sum()))
        stop = int(self._start_N[number - 1] + self.num_positions_N[number - 1]) + 1
        last = int(self.sequence_N[number - 1])
        length_D = self._length_D[: last + 1].numpy().copy()
        length_D[last] = stop - int(self._start_D[last])
        unscored = self._num_unscored_D
        return EncodedSplit(
            self._ids_S[:stop],
            length_D,
            self._max_positions,
            None if unscored is None else unscored[: last + 1],
        )

    def previous(self, distance: int) -> np.ndarray:
        """For each scored target the token `distance` places before it in its row. int32.

        `<BOS>` stands for what is past the start of the row.
        """
        start_N, length_N = self._start_N.numpy(), self.num_positions_N.numpy() + 1
        before_S = np.full(len(self._ids_S), BOS, np.int32)
        before_S[distance:] = self._ids_S[: len(before_S) - distance]
        for place in range(1, distance):  # these would reach into the row before
            before_S[start_N[place < length_N] + place] = BOS
        return before_S[self._is_target_S]

    @cached_property
    def _is_target_S(self) -> np.ndarray:
        is_target_S = np.ones(len(self._ids_S), bool)
        start_D = self._start_D.numpy()
        is_target_S[start_D] = False
        if self._num_unscored_D is not None:
            for start, number in zip(start_D, self._num_unscored_D, strict=True):
                is_target_S[start + 1 : start + 1 + number] = False
        return is_target_S

    def target_indices(self, batch: Batch) -> np.ndarray:
        """The indices of a batch's scored targets, row by row, among the targets of the split."""
        batch = batch.to("cpu")
        number_BT = batch.scored_BT.cumsum(1) - 1
        index_BT = self.first_target_N[batch.row_B][:, None] + number_BT
        return index_BT[batch.scored_BT].numpy()

    def batch(self, row_B: Tensor) -> Batch:
        """The batch of some rows, in this order."""
        num_positions_B = self.num_positions_N[row_B]
        num_unscored_B = num_positions_B - self.num_targets_N[row_B]
        step_T = torch.arange(int(num_positions_B.max()))
        index_BT = self._start_N[row_B][:, None] + step_T
        is_real_BT = step_T < num_positions_B[:, None]
        is_scored_BT = is_real_BT & (step_T >= num_unscored_B[:, None])
        index_BT.clamp_(max=len(self._ids_S) - 2)  # short rows at the end of the split
        return Batch(
            tokens_BT=torch.where(is_real_BT, self._at(index_BT), PAD),
            targets_BT=torch.where(is_scored_BT, self._at(index_BT + 1), IGNORE),
            row_B=row_B,
        )

    def ids_at(self, row_BT: Tensor, place_BT: Tensor) -> Tensor:
        """The ids at places of rows, from 0. int64."""
        return self._at(self._start_N[row_BT] + place_BT)

    def _at(self, index_BT: Tensor) -> Tensor:
        return torch.from_numpy(self._ids_S[index_BT.numpy()].astype(np.int64))
