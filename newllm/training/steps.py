"""The tables of a run, and its measurements by optimizer step."""

from __future__ import annotations

import csv
import io
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from newllm.runs.writing import write_text

Rows = Sequence[Mapping[str, float]]
COLUMNS = ("step", "tokens", "train/loss", "grad/norm")


class Steps:
    """A row of `COLUMNS` for each optimizer step; `tokens` counts from the start of the run.

    Measurements stay on the device until `collect`, so that no step waits for them.

    Args:
        path: the table to which collected rows are appended.

    Attributes:
        pending: sum of losses, number of tokens and gradient norm of each step not yet collected.
    """

    def __init__(self, path: Path) -> None:
        self.pending: list[Tensor] = []
        self._table = Table(path)
        self._values = array("d")  # row by row

    def __len__(self) -> int:
        """Steps, including those not yet collected."""
        return len(self._values) // len(COLUMNS) + len(self.pending)

    @property
    def num_tokens(self) -> int:
        """Tokens up to the last collected step."""
        return int(self._values[-3]) if self._values else 0

    @property
    def last_loss(self) -> float:
        """The loss of the last collected step; NaN before there is one."""
        return self._values[-2] if self._values else math.nan

    def rows(self, first: int = 0) -> list[dict[str, float]]:
        """The collected steps from index `first` on."""
        values = iter(self._values[first * len(COLUMNS) :])
        return [
            {"step": int(step), "tokens": int(tokens), "train/loss": loss, "grad/norm": norm}
            for step, tokens, loss, norm in zip(values, values, values, values, strict=True)
        ]

    def add(self, loss: Tensor, num_tokens: Tensor, gradient_norm: Tensor) -> None:
        """Add a step whose losses have the sum `loss` over `num_tokens` tokens."""
        self.pending.append(torch.stack([loss, num_tokens, gradient_norm.double()]))

    def collect(self) -> list[dict[str, float]]:
        """Fetch the pending steps from the device and append them to the table.

        Returns:
            Their rows.
        """
        if not self.pending:
            return []
        device = self.pending[-1].device  # those of a checkpoint may be on another one
        measured = torch.stack([step.to(device) for step in self.pending]).tolist()
        self.pending = []
        first = len(self)
        for step, (loss, tokens, norm) in enumerate(measured, start=first + 1):
            self._values.extend((step, self.num_tokens + tokens, loss / max(tokens, 1), norm))
        rows = self.rows(first)
        self._table.append(rows, self.rows)
        return rows

    def state_dict(self) -> dict[str, object]:
        """All steps, as tensors."""
        values = torch.tensor(self._values, dtype=torch.double)
        return {"values": values, "pending": [*self.pending]}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what `state_dict` returned."""
        values, pending = state["values"], state["pending"]
        assert isinstance(values, Tensor)
        assert isinstance(pending, list)
        self._values, self.pending = array("d", values.tolist()), pending


class Table:
    """A CSV file that grows, with a column for each name that occurs.

    A row that is cut off at its end is the only trace that an interruption can leave.

    Args:
        path: of the file. One of an earlier process is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: list[str] = []

    def append(
        self, rows: Rows, everything: Callable[[], Rows], changes_others: bool = False
    ) -> None:
        """Append rows.

        Args:
            rows: to be appended.
            everything: returns all rows, to write the file anew where these have other columns.
            changes_others: whether the rows before them have changed, too.
        """
        names = {name for row in rows for name in row}
        if changes_others or not names <= {*self._names}:
            self._names = write_table(self._path, everything())
            return
        known, self._names = self._names, []  # a failure has the file written anew
        with self._path.open("a") as file:
            file.write(_csv(known, rows, heading=False))
        self._names = known


def write_table(path: Path, rows: Rows) -> list[str]:
    """Write rows as CSV, with a column for each name that occurs, and return these names."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_text(path, _csv(names, rows))
    return names


def _csv(names: Sequence[str], rows: Rows, heading: bool = True) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    if heading:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
