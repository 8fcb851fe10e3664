"""Batches of sentences, for evaluation and for training.

Shape suffixes: B batch, N sentences of a split.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from newllm.data.batch import Batch
from newllm.data.encoded import EncodedSplit
from newllm.data.source import Split

BATCHINGS = ("shuffled", "bucketed")

# Bounds of the memory of an evaluation batch.
MAX_POSITIONS = 256 * 32
MAX_LOGITS = 2**23


class SentenceBatches(Split):
    """Batches of encoded sentences."""

    metrics = ("loss", "loss_batch_mean", "loss_known", "perplexity", "accuracy")


class EvaluationBatches(SentenceBatches):
    """Sentences ordered by length, with the least padding.

    Args:
        split: the sentences.
        batch_size: the most sentences in a batch.
        max_positions: the most positions in a batch, padding included. A longer sentence is a batch
            by itself. None bounds the logits of a batch.
        num_sentences: use only the first sentences of the split. None uses all.
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
        self.num_batches = len(self._batches) if len(split) else 0

    def batch(self, epoch: int, number: int) -> Batch:
        return self._split.batch(self._batches[number])

    def target_indices(self, number: int) -> np.ndarray:
        """The indices of a batch's scored targets, row by row, among the targets of the split."""
        return self._split.target_indices(self.batch(0, number))


def _sizes(length_N: Tensor, batch_size: int, max_positions: int) -> list[int]:
    """The number of sentences in each batch, given their lengths from short to long."""
    sizes, size = [], 0
    for length in length_N.tolist():
        if size and (size == batch_size or (size + 1) * length > max_positions):
            sizes.append(size)
            size = 0
        size += 1
    return [*sizes, size] if size else sizes


class TrainingBatches(SentenceBatches):
    """Sentences in an order that depends on the seed and the epoch alone.

    The rows of a batch are ordered from long to short, so that a recurrence can leave out the rows
    that have ended.

    Args:
        split: the sentences.
        batch_size: B. The last batch of an epoch may be smaller.
        batching: `shuffled` cuts a random order into batches; `bucketed` cuts the order by length,
            with random ties, and shuffles the batches.
        seed: decides all orders.
    """

    def __init__(self, split: EncodedSplit, batch_size: int, batching: str, seed: int) -> None:
        assert batching in BATCHINGS, batching
        self._split = split
        self._batch_size = batch_size
        self._batching = batching
        self._seed = seed
        self.num_batches = -(-len(split) // batch_size)
        self._epoch = -1  # of the order below
        self._order_N, self._places = torch.empty(0), np.empty(0, np.int64)

    def batch(self, epoch: int, number: int) -> Batch:
        if epoch != self._epoch:
            self._draw_order(epoch)
        start = int(self._places[number]) * self._batch_size
        row_B = self._order_N[start : start + self._batch_size]
        return self._split.batch(self._longest_first(row_B))

    def _draw_order(self, epoch: int) -> None:
        """Draw the order of the sentences and of the batches."""
        rng = np.random.default_rng((self._seed, epoch))
        order_N = torch.from_numpy(rng.permutation(len(self._split)))
        if self._batching == "bucketed":
            self._order_N, self._places = self._longest_first(order_N), rng.permutation(len(self))
        else:
            self._order_N, self._places = order_N, np.arange(len(self))
        self._epoch = epoch

    def _longest_first(self, row_B: Tensor) -> Tensor:
        length_B = self._split.num_positions_N[row_B]
        return row_B[length_B.argsort(descending=True, stable=True)]
