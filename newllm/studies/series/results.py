"""The published series beside its reproduction: reported and reproduced losses, and verdicts."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from newllm.runs.gathering import Run, is_of
from newllm.statistics.intervals import Interval, mean_interval

# Runs of the series that differ only in what cannot matter lie this far apart.
SPREAD_OF_ONE_RUN = 0.11


@cache
def published() -> dict[str, Any]:
    """The content of `published.toml`."""
    return tomllib.loads(files("newllm.studies.series").joinpath("published.toml").read_text())


@dataclass(frozen=True)
class Summary:
    """One experiment of the series: `reported` as it stands there, and the runs of that name."""

    name: str
    phase: int
    change: str
    reported_parameters: int | None
    reported: float | None
    reported_epoch: int | None
    is_approximate: bool
    is_stand_in: bool
    is_void: bool
    runs: list[Run]

    @property
    def done(self) -> list[Run]:
        """The runs that have the loss that the series reports."""
        return [
            run
            for run in self.runs
            if run.is_done and run.result.get("best_val_loss_batch_mean") is not None
        ]

    @property
    def losses(self) -> list[float]:
        """Of each run, by the series' own definition."""
        return [run.result["best_val_loss_batch_mean"] for run in self.done]

    @property
    def loss(self) -> Interval | None:
        return mean_interval(self.losses) if self.done else None

    @property
    def mean_loss(self) -> float | None:
        return self.loss.mean if self.loss else None

    @property
    def best_epochs(self) -> list[int]:
        return sorted(run.result["best_epoch"] for run in self.done)

    @property
    def parameters(self) -> int | None:
        return next((run.result["parameters"] for run in self.runs if run.is_known), None)

    @property
    def verdict(self) -> str:
        """not run, not reported, not comparable, agrees or differs.

        The reported loss is of one run. It agrees if a further run of ours could as well have had
        it, with 95 % confidence from at least three runs, or if it is no farther from the mean than
        runs of the series that differ in nothing that matters are from one another.
        """
        if not self.done:
            return "not run"
        if self.reported is None:
            return "not reported"
        if self.is_stand_in:
            return "not comparable"
        further = next_run_interval(self.losses)
        width = further.half_width if further.num_runs >= 3 else 0.0
        return (
            "agrees"
            if abs(self.reported - further.mean) <= max(width, SPREAD_OF_ONE_RUN)
            else "differs"
        )


def next_run_interval(values: Sequence[float]) -> Interval:
    """The interval in which one further run lies with the same confidence."""
    mean = mean_interval(values)
    return Interval(mean.mean, mean.half_width * math.sqrt(mean.num_runs + 1), mean.num_runs)


def summarize(runs: Sequence[Run]) -> list[Summary]:
    """All experiments of the series, in its order."""
    return [
        Summary(
            name=entry["name"],
            phase=entry["phase"],
            change=entry["change"],
            reported_parameters=entry.get("parameters"),
            reported=entry.get("loss"),
            reported_epoch=entry.get("epoch"),
            is_approximate=entry.get("approximate", False),
            is_stand_in=entry.get("stand_in", False),
            is_void=entry.get("void", False),
            runs=[run for run in runs if is_of(run, entry["name"])],
        )
        for entry in published()["experiment"]
    ]


@dataclass(frozen=True)
class Derived:
    """A percentage that the series prints: claimed, from its own losses, and from ours."""

    table: str
    name: str
    claimed: float
    from_reported: float | None
    reproduced: float | None

    @property
    def is_slip(self) -> bool:
        """Whether the claim does not follow from the losses that are printed beside it."""
        if self.from_reported is None:
            return False
        digits = 2 if round(self.claimed, 1) != self.claimed else 1
        return abs(self.claimed - self.from_reported) > 0.55 * 10**-digits


def derived(summaries: Sequence[Summary]) -> list[Derived]:
    """All percentages of the series."""
    by_name = {summary.name: summary for summary in summaries}
    rows = []
    for entry in published()["derived"]:
        base = by_name[entry["against"]]
        for name, claimed in entry["claimed"].items():
            own = by_name[name]
            rows.append(
                Derived(
                    entry["table"],
                    name,
                    claimed,
                    _percent(own.reported, base.reported),
                    _percent(own.mean_loss, base.mean_loss),
                )
            )
    return rows


@dataclass(frozen=True)
class Figure:
    """Another figure of the summary, and what it should be by the numbers it follows from."""

    what: str
    claimed: float
    computed: float

    @property
    def is_slip(self) -> bool:
        """Whether the claim is not the computed figure, rounded to as many digits."""
        digits = len(str(self.claimed).partition(".")[2])
        return abs(self.claimed - self.computed) > 0.55 * 10**-digits


def other_figures() -> list[Figure]:
    """Those that are neither losses of experiments nor percentages of these."""
    figures = []
    for entry in published()["figure"]:
        if "exp" in entry:
            computed = math.exp(*entry["exp"])
        elif "percent" in entry:
            computed = 100 * (entry["percent"][0] / entry["percent"][1] - 1)
        else:
            computed = entry["ratio"][0] / entry["ratio"][1]
        figures.append(Figure(entry["what"], entry["claimed"], computed))
    return figures


def _percent(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else 100 * (value / base - 1)
