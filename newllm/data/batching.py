"""Encoded sentences in flat tensors, and the batches that are cut from them.

Shape suffixes: B batch, T time, N sentences of a split, S all tokens of a split.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import Self

import numpy as np
import torch
from torch import Tensor

from newllm.data.batch import IGNORE, Batch
from newllm.data.tokenizer import BOS, PAD

BATCHINGS = ("shuffled", "bucketed")

# Of an evaluation batch, so that neither long sentences nor a large vocabulary fill the memory.
MAX_POSITIONS = 256 * 32
MAX_LOGITS = 2**23


class EncodedSplit:
    """The sentences of one split, end to end in one array.

    Args:
        sentences: the token ids of each sentence, ``<BOS>`` and ``<EOS>`` included.
    """

    def __init__(self, sentences: Sequence[Sequence[int]]) -> None:
        lengths = np.array([len(ids) for ids in sentences], dtype=np.int64)
        self._set(np.fromiter(chain(*sentences), np.int32, int(lengths.sum())), lengths)

    @classmethod
    def from_flat(cls, ids_S: np.ndarray, length_N: np.ndarray) -> Self:
        """A split of sentences that lie end to end already, and how many tokens each has."""
        split = cls.__new__(cls)
        split._set(ids_S, length_N)
        return split

    def _set(self, ids_S: np.ndarray, length_N: np.ndarray) -> None:
        assert length_N.sum() == len(ids_S)
        largest = int(ids_S.max()) if len(ids_S) else 0
        self._ids_S = ids_S.astype(np.min_scalar_type(largest), copy=False)  # batches are int64
        length = torch.from_numpy(length_N.astype(np.int64))
        # A sentence of n tokens takes n - 1 positions: the last token is only ever a target.
        self.num_positions_N = length - 1
        self._start_N = length.cumsum(0) - length
        self.num_ids = largest + 1  # at most the size of the vocabulary

    def __len__(self) -> int:
        return len(self.num_positions_N)

    def __getitem__(self, index: int) -> Tensor:
        """The ids of one sentence, ``<BOS>`` and ``<EOS>`` included. int64."""
        start = int(self._start_N[index])
        stop = start + int(self.num_positions_N[index]) + 1
        return torch.from_numpy(self._ids_S[start:stop].astype(np.int64))

    @property
    def first_target_N(self) -> Tensor:
        """Where the first target of each sentence stands among all targets."""
        return self._start_N - torch.arange(len(self))

    @property
    def num_targets(self) -> int:
        """Targets in the whole split, ``<EOS>`` counted."""
        return len(self._ids_S) - len(self)

    @property
    def targets(self) -> Tensor:
        """All targets in order, without padding. int32."""
        return torch.from_numpy(self.previous(0))

    @property
    def different_ids(self) -> set[int]:
        """The tokens that occur, ``<BOS>`` among them."""
        return set(np.unique(self._ids_S).tolist())

    def previous(self, distance: int) -> np.ndarray:
        """For each target the token so many places before it, ``<BOS>`` before the sentence. int32.

        At distance 0 it is the target itself.
        """
        start_N, length_N = self._start_N.numpy(), self.num_positions_N.numpy() + 1
        before_S = np.full(len(self._ids_S), BOS, np.int32)
        before_S[distance:] = self._ids_S[: len(before_S) - distance]
        for place in range(1, distance):  # what would reach into the sentence before
            before_S[start_N[place < length_N] + place] = BOS
        is_target_S = np.ones(len(before_S), dtype=bool)
        is_target_S[start_N] = False
        return before_S[is_target_S]

    def target_indices(self, batch: Batch) -> np.ndarray:
        """Where the real targets of a batch, row by row, stand among the targets of the split."""
        step_T = torch.arange(batch.targets_BT.shape[1])
        index_BT = self.first_target_N[batch.sentence_B][:, None] + step_T
        return index_BT[batch.scored_BT].numpy()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its tokens, in hexadecimal."""
        content = hashlib.sha256(self.num_positions_N.numpy().data)
        content.update(self._ids_S.data)
        return content.hexdigest()

    def batch(self, sentence_B: Tensor) -> Batch:
        """The batch made of these sentences, in this order."""
        num_positions_B = self.num_positions_N[sentence_B]
        step_T = torch.arange(int(num_positions_B.max()))
        index_BT = self._start_N[sentence_B][:, None] + step_T
        is_real_BT = step_T < num_positions_B[:, None]
        index_BT.clamp_(max=len(self._ids_S) - 2)  # short sentences at the end of the split
        return Batch(
            tokens_BT=torch.where(is_real_BT, self._at(index_BT), PAD),
            targets_BT=torch.where(is_real_BT, self._at(index_BT + 1), IGNORE),
            sentence_B=sentence_B,
        )

    def _at(self, index_BT: Tensor) -> Tensor:
        return torch.from_numpy(self._ids_S[index_BT.numpy()].astype(np.int64))


class EvaluationBatches:
    """A pass over a split in fixed order: by length, because that wastes the least on padding.

    Args:
        split: the sentences.
        batch_size: the most sentences in a batch.
        max_positions: the most positions in a batch, padding included; a sentence that is longer
            is a batch by itself. None takes as many as keep the logits of a batch small.
        num_sentences: only so many of the sentences, the first of the split; None takes all.
    """

    def __init__(
        self,
        split: EncodedSplit,
        batch_size: int = 256,
        max_positions: int | None = None,
        num_sentences: int | None = None,
    ) -> None:
        self._split = split
        limit = max_positions or min(MAX_POSITIONS, MAX_LOGITS // split.num_ids)
        order_N = split.num_positions_N[:num_sentences].argsort(stable=True)
        self._batches = order_N.split(_sizes(split.num_positions_N[order_N], batch_size, limit))

    def __len__(self) -> int:
        return len(self._batches) if len(self._split) else 0

    def __iter__(self) -> Iterator[Batch]:
        return map(self._split.batch, self._batches[: len(self)])


def _sizes(length_N: Tensor, batch_size: int, max_positions: int) -> list[int]:
    """How many sentences, ordered from short to long, each batch takes."""
    sizes, size = [], 0
    for length in length_N.tolist():
        if size and (size == batch_size or (size + 1) * length > max_positions):
            sizes.append(size)
            size = 0
        size += 1
    return [*sizes, size] if size else sizes


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
        for sentence_B in islice(self.order(self._epoch), self._num_used, None):
            yield self._split.batch(sentence_B)
            self._num_used += 1

    def order(self, epoch: int) -> Iterator[Tensor]:
        """The sentences of each batch of an epoch, the longest first.

        So the rows of a batch that have ended lie together, and a recurrence can leave them out.
        """
        rng = np.random.default_rng((self._seed, epoch))
        order_N = torch.from_numpy(rng.permutation(len(self._split)))
        if self._batching == "shuffled":
            yield from map(self._longest_first, self._cut(order_N, range(len(self))))
        else:
            yield from self._cut(self._longest_first(order_N), rng.permutation(len(self)))

    def _cut(self, order_N: Tensor, numbers: Iterable[int]) -> Iterator[Tensor]:
        """The batches of these numbers, cut from an order of all sentences."""
        for number in numbers:
            yield order_N[number * self._batch_size : (number + 1) * self._batch_size]

    def _longest_first(self, sentence_B: Tensor) -> Tensor:
        length_B = self._split.num_positions_N[sentence_B]
        return sentence_B[length_B.argsort(descending=True, stable=True)]
