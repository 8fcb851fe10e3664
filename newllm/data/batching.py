"""Encoded sentences in flat tensors, and the batches that are cut from them.

Shape suffixes: B batch, T time, N sentences of a split, S all tokens of a split.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from newllm.data.tokenizer import PAD

BATCHINGS = ("shuffled", "bucketed")


class Batch(NamedTuple):
    """Sentences padded on the right to the longest of the batch, with ``<PAD>``.

    Attributes:
        tokens_BT: what the model reads, ``<BOS>`` first. int64.
        targets_BT: the token that follows each of them, ``<EOS>`` last. int64.
        sentence_B: where each sentence stands in its split. int64.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    sentence_B: Tensor


class EncodedSplit:
    """The sentences of one split, end to end in one tensor.

    Args:
        sentences: the token ids of each sentence, ``<BOS>`` and ``<EOS>`` included.
    """

    def __init__(self, sentences: Sequence[Sequence[int]]) -> None:
        # A sentence of n tokens takes n - 1 positions: the last token is only ever a target.
        self.num_positions_N = torch.tensor([len(ids) - 1 for ids in sentences], dtype=torch.int64)
        self._start_N = (self.num_positions_N + 1).cumsum(0) - (self.num_positions_N + 1)
        longest = int(self.num_positions_N.max()) if sentences else 0
        # The padding at the end lets a batch read past a short sentence that comes last.
        self._ids_S = torch.tensor([*chain(*sentences), *[PAD] * longest], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.num_positions_N)

    def __getitem__(self, index: int) -> Tensor:
        """The ids of one sentence, ``<BOS>`` and ``<EOS>`` included."""
        start = self._start_N[index]
        return self._ids_S[start : start + self.num_positions_N[index] + 1]

    @property
    def num_targets(self) -> int:
        """Targets in the whole split, ``<EOS>`` counted."""
        return int(self.num_positions_N.sum())

    @property
    def targets(self) -> Tensor:
        """All targets in order, without padding."""
        is_target_S = torch.ones(self.num_targets + len(self), dtype=torch.bool)
        is_target_S[self._start_N] = False
        return self._ids_S[: len(is_target_S)][is_target_S]

    def batch(self, sentence_B: Tensor) -> Batch:
        """The batch made of these sentences, in this order."""
        num_positions_B = self.num_positions_N[sentence_B]
        step_T = torch.arange(int(num_positions_B.max()))
        index_BT = self._start_N[sentence_B][:, None] + step_T
        is_real_BT = step_T < num_positions_B[:, None]
        return Batch(
            tokens_BT=torch.where(is_real_BT, self._ids_S[index_BT], PAD),
            targets_BT=torch.where(is_real_BT, self._ids_S[index_BT + 1], PAD),
            sentence_B=sentence_B,
        )


class EvaluationBatches:
    """A pass over a split in fixed order: by length, because that wastes the least on padding."""

    def __init__(self, split: EncodedSplit, batch_size: int = 256) -> None:
        self._split = split
        self._batches = split.num_positions_N.argsort(stable=True).split(batch_size)

    def __len__(self) -> int:
        return len(self._batches) if len(self._split) else 0

    def __iter__(self) -> Iterator[Batch]:
        return map(self._split.batch, self._batches[: len(self)])


class TrainingBatches:
    """A pass over the training split in an order that depends on seed and epoch alone.

    Lightning treats it as a data loader that can resume in the middle of an epoch: it announces
    each epoch through ``sampler.set_epoch`` and keeps `state_dict` in its checkpoints. No random
    state outside is touched.

    Args:
        split: the sentences.
        batch_size: B; the last batch holds what is left over.
        batching: ``shuffled`` cuts a random order into batches; ``bucketed`` cuts the order by
            length, with random ties, and shuffles the batches.
        seed: decides all orders.
    """

    def __init__(self, split: EncodedSplit, batch_size: int, batching: str, seed: int) -> None:
        assert batching in BATCHINGS, batching
        self._split = split
        self._batch_size = batch_size
        self._batching = batching
        self._seed = seed
        self._epoch = 0
        self._num_used = 0
        self._num_to_skip = 0

    @property
    def sampler(self) -> "TrainingBatches":
        """Itself, because Lightning looks for `set_epoch` on a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, from 0; only the one that was broken off resumes in its middle."""
        if epoch != self._epoch:
            self._epoch, self._num_to_skip = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were used: all but the one at hand."""
        return {"epoch": self._epoch, "num_used": self._num_used}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lets the next pass skip the batches that were used when ``state`` was taken."""
        self._epoch, self._num_to_skip = state["epoch"], state["num_used"]

    def __len__(self) -> int:
        return -(-len(self._split) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        # Being a generator, this looks at the epoch only when the first batch is asked for;
        # Lightning makes the iterator before it announces the epoch.
        self._num_used, self._num_to_skip = self._num_to_skip, 0
        for sentence_B in self.order(self._epoch)[self._num_used :]:
            yield self._split.batch(sentence_B)
            self._num_used += 1

    def order(self, epoch: int) -> list[Tensor]:
        """The sentences of each batch of an epoch, the longest first.

        So the rows of a batch that have ended lie together, and a recurrence can leave them out.
        """
        rng = np.random.default_rng((self._seed, epoch))
        order_N = torch.from_numpy(rng.permutation(len(self._split)))
        if self._batching == "shuffled":
            return [self._longest_first(batch_B) for batch_B in order_N.split(self._batch_size)]
        batches = self._longest_first(order_N).split(self._batch_size)
        return [batches[i] for i in rng.permutation(len(batches))]

    def _longest_first(self, sentence_B: Tensor) -> Tensor:
        length_B = self._split.num_positions_N[sentence_B]
        return sentence_B[length_B.argsort(descending=True, stable=True)]
