"""Metrics of a split, from sums over the scored targets of each row.

Shape suffixes: B rows of a batch, T time, N rows of a split, S slices, K fields of `Sums`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from scipy.special import entr
from torch import Tensor

from newllm.data.batch import Batch
from newllm.data.source import Split
from newllm.data.tokenizer import UNK, Tokenizer
from newllm.models.language_model import LanguageModel
from newllm.statistics.scoring import score_batches

# The published validation loss is a mean over batches of this many sentences, in split order.
PUBLISHED_BATCH_SIZE = 16


class RowSums(NamedTuple):
    """The sums over the scored targets of each row of a batch.

    Attributes:
        sums_BK: one `Sums` per row. float64.
        row_B: as in `Batch`.
        slice_B: as in `Batch`.
    """

    sums_BK: Tensor
    row_B: Tensor
    slice_B: Tensor | None = None


@torch.no_grad()
def sum_rows(
    loss_BT: Tensor, correct_BT: Tensor, batch: Batch, bytes_V: Tensor | None = None
) -> RowSums:
    """Sum what `LanguageModel.score` returns for a batch; `bytes_V` are those of each token."""
    scored_BT = batch.scored_BT
    known_BT = scored_BT & (batch.targets_BT != UNK)
    columns = (loss_BT, scored_BT, loss_BT * known_BT, known_BT, correct_BT & scored_BT)
    sums = [column.sum(1).double() for column in columns]
    is_row_B = (sums[1] > 0).double()
    is_correct_B = is_row_B * (sums[4] == sums[1])
    bytes_B = torch.zeros_like(is_row_B)
    if bytes_V is not None:
        bytes_BT = bytes_V.to(loss_BT.device)[batch.targets_BT.clamp(min=0)]
        bytes_B = (bytes_BT * scored_BT).sum(1).double()
    sums_BK = torch.stack([*sums, is_row_B, is_correct_B, bytes_B], 1)
    return RowSums(sums_BK, batch.row_B, batch.slice_B)


class Sums(NamedTuple):
    """Sums over the scored targets of rows."""

    loss: float
    tokens: float
    loss_known: float
    tokens_known: float
    correct: float
    rows: float
    rows_correct: float
    bytes: float


def perplexity(loss: float) -> float:
    """e to the loss in nats; infinite if that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


def bits_recalled(num_answers: int, sums: Sums) -> float:
    """A lower bound of what the state held of the targets, in bits per row.

    For targets that are m independent, uniform items of V kinds, read before the first is asked
    for, predictions from a state of b bits have a mean loss of at least m log2 V - b bits per row.
    So b is at least m log2 V minus the loss. A model that is confident and wrong has a higher loss
    than its state allows. The loss of another prediction from the same state bounds b as well: the
    model's likeliest answer with a probability of the accuracy, else any other answer (Fano's
    inequality). The lower of the two losses counts.

    Args:
        num_answers: V.
        sums: over the targets; the loss is in nats.
    """
    accuracy = sums.correct / sums.tokens
    doubt = entr(accuracy) + entr(1 - accuracy)
    by_accuracy = doubt + (1 - accuracy) * math.log(num_answers - 1)
    nats = math.log(num_answers) - min(sums.loss / sums.tokens, by_accuracy)
    return max(0.0, float(nats)) / math.log(2) * sums.tokens / sums.rows


METRICS: dict[str, Callable[[Sums], float]] = {
    "loss": lambda sums: sums.loss / sums.tokens,
    "loss_known": lambda sums: sums.loss_known / max(sums.tokens_known, 1),
    "perplexity": lambda sums: perplexity(sums.loss / sums.tokens),
    "accuracy": lambda sums: sums.correct / sums.tokens,
    "accuracy_sequence": lambda sums: sums.rows_correct / sums.rows,
    "bits_per_byte": lambda sums: sums.loss / (math.log(2) * max(sums.bytes, 1)),
}
BITS_PER_BYTE = "bits_per_byte"
BATCH_MEAN = "loss_batch_mean"  # the only metric that needs single rows
RECALLED = "bits_recalled"  # the only one that needs the kinds of targets


class Scores:
    """The metrics of a split, accumulated batch by batch in any order.

    Args:
        names: names of metrics, from `METRICS`, `loss_batch_mean` or `bits_recalled`.
        slices: names of the slices of the split.
        num_answers: as in `Split`.
        tokenizer: of the source, which gives the bytes of each token.

    Raises:
        ValueError: a metric does not exist, or lacks `num_answers` or the bytes of tokens.
    """

    def __init__(
        self,
        names: Sequence[str],
        slices: Sequence[str] = (),
        num_answers: int | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        known = (*METRICS, BATCH_MEAN, RECALLED)
        if unknown := [name for name in names if name not in known]:
            raise ValueError(
                f"metrics: {', '.join(unknown)} does not exist; choose among {', '.join(known)}"
            )
        if RECALLED in names and num_answers is None:
            raise ValueError(f"metrics: {RECALLED} needs num_answers, the kinds of targets")
        bytes_V = None if tokenizer is None else tokenizer.bytes_V
        if BITS_PER_BYTE in names and bytes_V is None:
            raise ValueError(f"metrics: {BITS_PER_BYTE} needs tokens that stand for bytes of text")
        self.bytes_V = None if bytes_V is None else torch.from_numpy(bytes_V)
        self._names, self._slices = tuple(names), tuple(slices)
        self._of_sums = METRICS
        if num_answers is not None:
            self._of_sums = METRICS | {RECALLED: partial(bits_recalled, num_answers)}
        self._rows: list[RowSums] = []
        self._sums_SK: Tensor | None = None

    @classmethod
    def of(cls, split: Split, tokenizer: Tokenizer | None = None) -> Scores:
        """The metrics of a split, before its first batch."""
        return cls(split.metrics, split.slices, split.num_answers, tokenizer)

    def add(self, rows: RowSums) -> None:
        """Add a batch, without waiting for the device."""
        if self._sums_SK is None:
            shape = max(len(self._slices), 1), len(Sums._fields)
            self._sums_SK = rows.sums_BK.new_zeros(shape)
        self._sums_SK = self._sums_SK.to(rows.sums_BK.device)  # from a checkpoint
        if self._slices:
            assert rows.slice_B is not None, "a split with slices needs slice_B"
            self._sums_SK.index_add_(0, rows.slice_B, rows.sums_BK)
        else:
            self._sums_SK += rows.sums_BK.sum(0)
        if BATCH_MEAN in self._names:
            self._rows.append(rows)

    def metrics(self) -> dict[str, float]:
        """The metrics by name, those of a slice as `METRIC/SLICE`; empty before `add`."""
        if self._sums_SK is None:
            return {}
        parts = {"": self._sums_SK.sum(0)}
        parts |= {f"/{name}": row for name, row in zip(self._slices, self._sums_SK, strict=False)}
        found = {}
        for suffix, sums_K in parts.items():
            sums = Sums(*sums_K.tolist())
            for name in self._names:
                if name in self._of_sums and sums.tokens:
                    found[name + suffix] = self._of_sums[name](sums)
                elif name == BATCH_MEAN and not suffix:
                    found[name] = self._batch_mean()
        return found

    def _batch_mean(self) -> float:
        """The unweighted mean over batches of `PUBLISHED_BATCH_SIZE` rows."""
        order_N = torch.cat([rows.row_B.cpu() for rows in self._rows]).argsort()
        sums_NK = torch.cat([rows.sums_BK.cpu() for rows in self._rows])[order_N]
        means = [
            (group_BK[:, 0].sum() / group_BK[:, 1].sum()).item()
            for group_BK in sums_NK.split(PUBLISHED_BATCH_SIZE)
        ]
        return sum(means) / len(means)

    def state_dict(self) -> dict[str, Any]:
        """The accumulated sums, as tensors."""
        return {"sums": self._sums_SK, "rows": [tuple(rows) for rows in self._rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sums_SK = state["sums"]
        self._rows = [RowSums(*rows) for rows in state["rows"]]


@torch.no_grad()
def split_metrics(
    model: LanguageModel, split: Split, tokenizer: Tokenizer | None = None
) -> dict[str, float]:
    """Evaluate a model on a split; the state is carried if its batches contain `continues_B`."""
    scores = Scores.of(split, tokenizer)
    for scored in score_batches(model, split):
        scores.add(sum_rows(scored.loss_BT, scored.correct_BT, scored.batch, scores.bytes_V))
    return scores.metrics()
