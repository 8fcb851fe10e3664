"""What each optimizer step scored: in memory, in a checkpoint and, while a run goes on, on disk."""

from __future__ import annotations

import csv
import io
import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from newllm.runs.directory import write_text

COLUMNS = ("step", "tokens", "train/loss", "grad/norm")


class Steps:
    """A row of `COLUMNS` for each optimizer step; `tokens` are those trained on so far.

    What was measured stays on the device until `collect`, so that no step waits for it.

    Args:
        path: of the table, `steps.csv`, to which rows are appended as they are collected.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values = array("d")
        self._pending: list[Tensor] = []  # of each step: sum of losses, tokens, gradient norm
        self._num_written = 0

    def __len__(self) -> int:
        """All steps, those that are not collected yet among them."""
        return self._num_collected + len(self._pending)

    @property
    def _num_collected(self) -> int:
        return len(self._values) // len(COLUMNS)

    @property
    def num_tokens(self) -> int:
        """Tokens trained on, up to the last collected step."""
        return int(self._values[-len(COLUMNS) + 1]) if self._values else 0

    @property
    def last_loss(self) -> float:
        """The loss of the last collected step; NaN before there is one."""
        return self._values[-len(COLUMNS) + 2] if self._values else math.nan

    def rows(self, first: int = 0) -> list[dict[str, float]]:
        """The collected steps from a number, from 0, on."""
        values = self._values[first * len(COLUMNS) :]
        return [
            {"step": int(step), "tokens": int(tokens), COLUMNS[2]: loss, COLUMNS[3]: norm}
            for step, tokens, loss, norm in zip(*[iter(values)] * len(COLUMNS), strict=True)
        ]

    def add(self, loss: Tensor, num_tokens: Tensor, gradient_norm: Tensor) -> None:
        """Add a step: the sum of its losses over so many tokens."""
        self._pending.append(torch.stack([loss, num_tokens, gradient_norm.double()]))

    @property
    def num_pending(self) -> int:
        """Steps that are not collected yet."""
        return len(self._pending)

    def collect(self) -> list[dict[str, float]]:
        """Bring the pending steps from the device and append them to the table; returns them."""
        if not self._pending:
            return []
        first, num_tokens = self._num_collected, self.num_tokens
        device = self._pending[-1].device  # those of a checkpoint may lie elsewhere
        pending = torch.stack([step.to(device) for step in self._pending])
        for number, (loss, tokens, norm) in enumerate(pending.tolist(), start=1):
            num_tokens += int(tokens)
            self._values.extend((first + number, num_tokens, loss / max(tokens, 1), norm))
        self._pending = []
        rows = self.rows(first)
        self._append()
        return rows

    def _append(self) -> None:
        """Append the rows that the table lacks; a table of an earlier process is written anew."""
        new = self.rows(self._num_written)
        if not self._num_written:
            write_text(self._path, table(COLUMNS, new))
        else:
            with self._path.open("a") as file:
                file.write(table(COLUMNS, new, heading=False))
        self._num_written += len(new)

    def state_dict(self) -> dict[str, object]:
        """All steps, as tensors."""
        return {
            "values": torch.tensor(self._values, dtype=torch.double),
            "pending": [*self._pending],
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take up what `state_dict` gave."""
        values, pending = state["values"], state["pending"]
        assert isinstance(values, Tensor)
        assert isinstance(pending, list)
        self._values, self._pending = array("d", values.tolist()), pending


def table(names: Sequence[str], rows: Sequence[Mapping[str, float]], heading: bool = True) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    if heading:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
