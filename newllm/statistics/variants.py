"""Runs that differ in their seed alone, as one variant with a mean and an interval."""

from __future__ import annotations

import math
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
    """All runs with the same choices but for the seed.

    Attributes:
        label: the choices in which it differs from the variants beside it.
        runs: includes those that failed.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def done(self) -> list[Run]:
        """The runs that have the loss by which they are judged."""
        metric = criteria().metric
        return [run for run in self.runs if run.is_done and _is_number(run.result.get(metric))]

    @property
    def not_done(self) -> dict[str, int]:
        """The number of other runs by status: failed, diverged, interrupted, running."""
        done = self.done
        return dict(Counter(run.status for run in self.runs if run not in done))

    @property
    def is_void(self) -> bool:
        """Whether it sees future tokens, so that its losses are not those of a language model."""
        return any(run.result.get("sees_the_future") for run in self.runs)

    @property
    def choices(self) -> dict[str, str]:
        return choices_of(self.runs[0])

    @property
    def full_name(self) -> str:
        """All choices: unlike the label, it does not depend on other variants."""
        return " ".join(f"{key}={value}".rstrip("=") for key, value in self.choices.items())

    @property
    def loss(self) -> Interval | None:
        """Best validation loss over seeds."""
        return self.interval(criteria().metric)

    def by_seed(self, name: str) -> dict[int, float]:
        """A number of the results, by the seed of the finished runs that have it."""
        return {
            run.result.get("seed", index): run.result[name]
            for index, run in enumerate(self.done)
            if _is_number(run.result.get(name))
        }

    def interval(self, name: str) -> Interval | None:
        """Mean and interval of a number of the results over seeds; None where no run has it."""
        values = list(self.by_seed(name).values())
        return mean_interval(values) if values else None

    def curve(self, clock: str) -> list[tuple[float, list[float]]]:
        """Validation losses of all seeds by `epoch` or `step`, up to the end of the shortest."""
        needed = {clock, "val/loss"}
        tables = [
            [(row[clock], row["val/loss"]) for row in run.epochs if row.keys() >= needed]
            for run in self.done
        ]
        known = [table for table in tables if table]  # a file may be missing
        return [(rows[0][0], [loss for _, loss in rows]) for rows in zip(*known, strict=False)]

    def first(self, name: str) -> Any:
        """The value of a field that all runs share."""
        return next((run.result[name] for run in self.runs if run.result.get(name)), None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def variants(runs: Iterable[Run]) -> list[Variant]:
    """All runs as variants with different labels, in the order of their first runs."""
    return labelled(grouped(runs))


def grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that differ in their seed alone together.

    A run that failed before its configuration was known joins those with the same choices.
    """
    runs = list(runs)
    hashes = {_chosen(run): h for run in runs if (h := run.result.get("variant_hash"))}
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        chosen = _chosen(run)
        key = run.result.get("variant_hash") or hashes.get(chosen, chosen)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _chosen(run: Run) -> Hashable:
    return frozenset(choices_of(run).items())


def labelled(groups: Sequence[Sequence[Run]]) -> list[Variant]:
    """Groups as variants, with the labels that tell them apart."""
    first = [group[0] for group in groups]
    others = [[str(run.result.get("name") or ""), run.place] for run in first]
    names = labels([choices_of(run) for run in first], others)
    return [Variant(name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def folder_of(run: Run) -> str:
    """The name of the folder in which a sweep puts a run and those of its other seeds."""
    if "overrides" in run.result:
        return run_name(run.result["overrides"])
    return folder_name(Path(run.place).absolute().name)


def start_alike(runs: Sequence[Run]) -> bool:
    """Whether runs of one seed read the same batches with models of one size.

    Such runs have the same random draws, and so the same weights unless their scale was changed.
    """
    kinds = {(run.result.get("parameters"), run.result.get("data_sha256")) for run in runs}
    return len(kinds) == 1
