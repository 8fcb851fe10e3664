"""Metrics of a split, from sums over the scored targets of each of its rows.

Shape suffixes: B rows of a batch, T time, N rows of a split, S slices, K columns (`COLUMNS`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from newllm.data.batch import Batch, on_device_of
from newllm.data.source import Split
from newllm.data.tokenizer import UNK
from newllm.models.language_model import LanguageModel

# The published validation loss is a mean over batches of this many sentences, in split order.
PUBLISHED_BATCH_SIZE = 16

COLUMNS = ("loss", "tokens", "loss_known", "tokens_known", "correct", "rows", "rows_correct")


class RowSums(NamedTuple):
    """What a batch adds to the metrics of its split.

    Attributes:
        sums_BK: sums over the scored targets of each row. float64.
        sentence_B: the index of each row within its split. int64.
        slice_B: its slice; None for a split without slices. int64.
    """

    sums_BK: Tensor
    sentence_B: Tensor
    slice_B: Tensor | None = None


@torch.no_grad()
def sum_rows(loss_BT: Tensor, correct_BT: Tensor, batch: Batch) -> RowSums:
    """Sum what `LanguageModel.score` returns for a batch; the rest of a row counts nothing."""
    scored_BT = batch.scored_BT
    known_BT = scored_BT & (batch.targets_BT != UNK)
    columns = (loss_BT, scored_BT, loss_BT * known_BT, known_BT, correct_BT & scored_BT)
    sums = [column.sum(1).double() for column in columns]
    is_row_B = (sums[1] > 0).double()
    is_correct_B = is_row_B * (sums[4] == sums[1])
    return RowSums(torch.stack([*sums, is_row_B, is_correct_B], 1), batch.sentence_B, batch.slice_B)


class Sums(NamedTuple):
    """The columns of `COLUMNS`, summed over rows."""

    loss: float
    tokens: float
    loss_known: float
    tokens_known: float
    correct: float
    rows: float
    rows_correct: float


def perplexity(loss: float) -> float:
    """e to the loss in nats; infinite where that is too large for a number."""
    return math.exp(loss) if loss < 700 else math.inf


METRICS: dict[str, Callable[[Sums], float]] = {
    "loss": lambda sums: sums.loss / sums.tokens,
    "loss_known": lambda sums: sums.loss_known / max(sums.tokens_known, 1),
    "perplexity": lambda sums: perplexity(sums.loss / sums.tokens),
    "accuracy": lambda sums: sums.correct / sums.tokens,
    "accuracy_sequence": lambda sums: sums.rows_correct / sums.rows,
}
BATCH_MEAN = "loss_batch_mean"  # the only one that needs the rows one by one


class Scores:
    """The metrics of a split, gathered batch by batch in any order.

    Args:
        names: of `METRICS`, or `loss_batch_mean`.
        slices: of the split.

    Raises:
        ValueError: a metric that does not exist.
    """

    def __init__(self, names: Sequence[str], slices: Sequence[str] = ()) -> None:
        if unknown := [name for name in names if name not in (*METRICS, BATCH_MEAN)]:
            known = ", ".join((*METRICS, BATCH_MEAN))
            raise ValueError(f"metrics: {', '.join(unknown)} does not exist; choose among {known}")
        self._names, self._slices = tuple(names), tuple(slices)
        self._rows: list[RowSums] = []
        self._sums_SK: Tensor | None = None

    def add(self, rows: RowSums) -> None:
        """Add a batch; nothing waits for the device."""
        if self._sums_SK is None:
            shape = max(len(self._slices), 1), len(COLUMNS)
            self._sums_SK = rows.sums_BK.new_zeros(shape)
        self._sums_SK = self._sums_SK.to(rows.sums_BK.device)  # one of a checkpoint lay elsewhere
        if self._slices:
            assert rows.slice_B is not None, "a split with slices must name the slice of each row"
            self._sums_SK.index_add_(0, rows.slice_B, rows.sums_BK)
        else:
            self._sums_SK += rows.sums_BK.sum(0)
        if BATCH_MEAN in self._names:
            self._rows.append(rows)

    def metrics(self) -> dict[str, float]:
        """All metrics by name, those of a slice as `METRIC/SLICE`; none before `add`."""
        if self._sums_SK is None:
            return {}
        found = {}
        parts = {"": self._sums_SK.sum(0)}
        parts |= {f"/{name}": row for name, row in zip(self._slices, self._sums_SK, strict=False)}
        for suffix, sums_K in parts.items():
            sums = Sums(*sums_K.tolist())
            for name in self._names:
                if name in METRICS and sums.tokens:
                    found[name + suffix] = METRICS[name](sums)
        if BATCH_MEAN in self._names:
            found[BATCH_MEAN] = self._batch_mean()
        return {name: found[name] for name in (*self._names, *found) if name in found}

    def _batch_mean(self) -> float:
        """The mean over batches of the mean over the tokens of each."""
        order_N = torch.cat([rows.sentence_B.cpu() for rows in self._rows]).argsort()
        sums_NK = torch.cat([rows.sums_BK.cpu() for rows in self._rows])[order_N]
        means = [
            (group_BK[:, 0].sum() / group_BK[:, 1].sum()).item()
            for group_BK in sums_NK.split(PUBLISHED_BATCH_SIZE)
        ]
        return sum(means) / len(means)

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far, as tensors."""
        return {"sums": self._sums_SK, "rows": [tuple(rows) for rows in self._rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._sums_SK = state["sums"]
        self._rows = [RowSums(*rows) for rows in state["rows"]]


@torch.no_grad()
def split_metrics(model: LanguageModel, split: Split) -> dict[str, float]:
    """The metrics of an evaluation split; its state is carried on where its batches say so."""
    scores, state = Scores(split.metrics, split.slices), None
    for batch in on_device_of(model, split):
        carried = state if batch.reset_BT is not None else None
        loss_BT, correct_BT, state = model.score(
            batch.tokens_BT, batch.targets_BT, carried, batch.reset_BT
        )
        scores.add(sum_rows(loss_BT, correct_BT, batch))
    return scores.metrics()
