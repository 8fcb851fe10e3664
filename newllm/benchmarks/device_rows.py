"""The rows of a benchmark of a device, and their table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

COLUMNS = ("milliseconds", "ratio", "tokens_per_second", "tflops", "share", "megabytes")


@dataclass(frozen=True)
class Row:
    """One row; what is unknown is None.

    Attributes:
        milliseconds: median over the rounds.
        spread: half the interquartile range, as a share of the median.
        ratio: how many times faster than the first row of the group. None if that one failed.
        tokens_per_second: read in training.
        tflops: operations of products per second, counted as in `LanguageModel.flops_per_token`.
        share: of the measured rate of large products; of a whole run, of the data sheet's rate.
        megabytes: by how much a step raises the allocated memory at its peak.
        terabytes_per_second: read and written by a copy.
        error: why there are no figures.
    """

    milliseconds: float | None = None
    spread: float | None = None
    ratio: float | None = None
    tokens_per_second: float | None = None
    tflops: float | None = None
    share: float | None = None
    megabytes: float | None = None
    terabytes_per_second: float | None = None
    error: str | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return self.error
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return ", ".join(f"{name} {_number(value)}" for name, value in known.items())


def device_markdown(rows: Mapping[str, Row], machine: str) -> str:
    """The rows as a Markdown table."""
    lines = [f"Measured on {machine}.", "", f"| row | {' | '.join(COLUMNS)} |"]
    lines.append("|---|" + "---:|" * len(COLUMNS))
    for name, row in rows.items():
        values = asdict(row)
        shown = ["" if values[column] is None else _number(values[column]) for column in COLUMNS]
        shown[0] = row.error or shown[0]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join([*lines, ""])


def _number(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
