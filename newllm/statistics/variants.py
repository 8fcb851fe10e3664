"""Runs that differ in their seed alone, as one variant with a mean and an interval."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newllm.config.naming import folder_name, run_name
from newllm.runs.gathering import Run
from newllm.statistics.intervals import Interval, criteria, mean_interval
from newllm.statistics.labels import choices_of, labels


@dataclass(frozen=True)
class Variant:
    """What was chosen without the seed, and its runs.

    Attributes:
        label: the choices that other variants beside it do not share.
        runs: also those that failed.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def done(self) -> list[Run]:
        """The runs that have the loss that they are judged by."""
        metric = criteria().metric
        return [run for run in self.runs if run.is_done and _is_number(run.result.get(metric))]

    @property
    def not_done(self) -> dict[str, int]:
        """How many runs have each other status: failed, diverged, interrupted, running."""
        done = self.done
        return dict(Counter(run.status for run in self.runs if run not in done))

    @property
    def is_void(self) -> bool:
        """Whether it sees the future, so that its losses are none of a language model."""
        return any(run.result.get("sees_the_future") for run in self.runs)

    @property
    def choices(self) -> dict[str, str]:
        return choices_of(self.runs[0])

    @property
    def full_name(self) -> str:
        """All its choices: unlike the label, it does not depend on other variants."""
        return " ".join(f"{key}={value}".rstrip("=") for key, value in self.choices.items())

    @property
    def loss(self) -> Interval | None:
        """Best validation loss, over seeds."""
        return self.interval(criteria().metric)

    def by_seed(self, name: str) -> dict[int, float]:
        """A figure of the results of all runs that are done and have it."""
        return {
            run.result.get("seed", number): run.result[name]
            for number, run in enumerate(self.done)
            if _is_number(run.result.get(name))
        }

    def interval(self, name: str) -> Interval | None:
        """Mean and interval of a figure over seeds; None where no run has it."""
        values = list(self.by_seed(name).values())
        return mean_interval(values) if values else None

    def mean(self, name: str) -> float | None:
        values = list(self.by_seed(name).values())
        return statistics.fmean(values) if values else None

    def curve(self, clock: str) -> list[tuple[float, list[float]]]:
        """Points of time with the validation losses of all seeds there, as far as all go.

        Args:
            clock: `epoch` or `step`.
        """
        tables = [
            [
                (row[clock], row["val/loss"])
                for row in run.epochs
                if row.keys() >= {clock, "val/loss"}
            ]
            for run in self.done
        ]
        known = [table for table in tables if table]  # a table may be gone
        return [(rows[0][0], [loss for _time, loss in rows]) for rows in zip(*known, strict=False)]

    def first(self, name: str) -> Any:
        """A field that all runs share, of the first that has it."""
        return next((run.result[name] for run in self.runs if run.result.get(name)), None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def variants(runs: Iterable[Run]) -> list[Variant]:
    """All runs as variants, in the order of their first runs, each with a label of its own."""
    return labelled(grouped(runs))


def grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that differ in their seed alone together.

    A run that failed before it said what it is belongs to those of the same choices.
    """
    runs = list(runs)
    known = {_chosen(run): variant_of(run) for run in runs if "variant_hash" in run.result}
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        name = variant_of(run)
        if "variant_hash" not in run.result:
            name = known.get(_chosen(run), name)
        groups.setdefault(name, []).append(run)
    return list(groups.values())


def variant_of(run: Run) -> Hashable:
    """What a run shares with those of other seeds, and with no other."""
    return str(run.result.get("variant_hash") or "") or _chosen(run)


def folder_of(run: Run) -> str:
    """The name of the folder that a sweep gives to a run and its other seeds."""
    if "overrides" in run.result:
        return run_name(run.result["overrides"])
    return folder_name(Path(run.place).absolute().name)


def _chosen(run: Run) -> Hashable:
    return frozenset(choices_of(run).items())


def labelled(groups: Sequence[Sequence[Run]]) -> list[Variant]:
    """Groups with the labels that tell them apart from one another."""
    others = [
        [str(run.result.get("name") or ""), run.place] for run in (group[0] for group in groups)
    ]
    names = labels([choices_of(group[0]) for group in groups], others)
    return [Variant(name, tuple(group)) for name, group in zip(names, groups, strict=True)]
