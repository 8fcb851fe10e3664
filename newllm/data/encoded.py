"""The sentences of a split, encoded.

Shape suffixes: B batch, T time, N sentences of a split, S all tokens of a split.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from newllm.data.batch import IGNORE, Batch
from newllm.data.tokenizer import BOS, PAD

BLOCK = 1 << 20  # tokens processed at once


class EncodedSplit:
    """The sentences of one split, end to end in one array.

    Args:
        ids_S: the token ids of all sentences, `<BOS>` and `<EOS>` included.
        length_N: the number of ids of each sentence.
    """

    def __init__(self, ids_S: np.ndarray, length_N: np.ndarray) -> None:
        assert length_N.sum() == len(ids_S)
        largest = int(ids_S.max()) if len(ids_S) else 0
        # Unsigned ids are small already and may be mapped from a file.
        smallest = ids_S.dtype if ids_S.dtype.kind == "u" else np.min_scalar_type(largest)
        self._ids_S = ids_S.astype(smallest, copy=False)
        length = torch.from_numpy(length_N.astype(np.int64))
        # A sentence of n tokens takes n - 1 positions: the last token is only a target.
        self.num_positions_N = length - 1
        self._start_N = length.cumsum(0) - length
        self.num_ids = largest + 1  # at most the size of the vocabulary

    def __len__(self) -> int:
        return len(self.num_positions_N)

    def __getitem__(self, index: int) -> Tensor:
        """The ids of one sentence, `<BOS>` and `<EOS>` included. int64."""
        start = int(self._start_N[index])
        stop = start + int(self.num_positions_N[index]) + 1
        return torch.from_numpy(self._ids_S[start:stop].astype(np.int64))

    @property
    def first_target_N(self) -> Tensor:
        """The index of the first target of each sentence among all targets."""
        return self._start_N - torch.arange(len(self))

    @property
    def num_targets(self) -> int:
        """Targets in the split, `<EOS>` counted."""
        return len(self._ids_S) - len(self)

    @property
    def targets(self) -> Tensor:
        """All targets in order, without padding. int32."""
        return torch.from_numpy(self.previous(0))

    @property
    def different_ids(self) -> set[int]:
        """The set of tokens that occur, with `<BOS>`."""
        occurs_V = np.zeros(self.num_ids, bool)
        for start in range(0, len(self._ids_S), BLOCK):
            occurs_V[self._ids_S[start : start + BLOCK]] = True
        return set(np.flatnonzero(occurs_V).tolist())

    def head(self, num_targets: int) -> EncodedSplit:
        """The first sentences that have at most `num_targets` targets together, at least one."""
        if self.num_targets <= num_targets:
            return self
        number = max(1, int((self.num_positions_N.cumsum(0) <= num_targets).sum()))
        length_N = self.num_positions_N[:number].numpy() + 1
        return EncodedSplit(self._ids_S[: length_N.sum()], length_N)

    def previous(self, distance: int) -> np.ndarray:
        """For each target the token `distance` places before it, `<BOS>` past the start. int32."""
        start_N, length_N = self._start_N.numpy(), self.num_positions_N.numpy() + 1
        before_S = np.full(len(self._ids_S), BOS, np.int32)
        before_S[distance:] = self._ids_S[: len(before_S) - distance]
        for place in range(1, distance):  # these would reach into the sentence before
            before_S[start_N[place < length_N] + place] = BOS
        is_target_S = np.ones(len(before_S), dtype=bool)
        is_target_S[start_N] = False
        return before_S[is_target_S]

    def target_indices(self, batch: Batch) -> np.ndarray:
        """The indices of a batch's scored targets, row by row, among the targets of the split."""
        batch = batch.to("cpu")
        step_T = torch.arange(batch.targets_BT.shape[1])
        index_BT = self.first_target_N[batch.row_B][:, None] + step_T
        return index_BT[batch.scored_BT].numpy()

    def batch(self, row_B: Tensor) -> Batch:
        """The batch of some sentences, in this order."""
        num_positions_B = self.num_positions_N[row_B]
        step_T = torch.arange(int(num_positions_B.max()))
        index_BT = self._start_N[row_B][:, None] + step_T
        is_real_BT = step_T < num_positions_B[:, None]
        index_BT.clamp_(max=len(self._ids_S) - 2)  # short sentences at the end of the split
        return Batch(
            tokens_BT=torch.where(is_real_BT, self._at(index_BT), PAD),
            targets_BT=torch.where(is_real_BT, self._at(index_BT + 1), IGNORE),
            row_B=row_B,
        )

    def _at(self, index_BT: Tensor) -> Tensor:
        return torch.from_numpy(self._ids_S[index_BT.numpy()].astype(np.int64))
