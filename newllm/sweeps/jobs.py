"""The jobs of a sweep and how they ended."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from newllm.config.naming import run_folder
from newllm.runs.directory import read_result


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep."""

    config: DictConfig
    overrides: tuple[str, ...]
    folder: Path

    @classmethod
    def below(cls, config: DictConfig, overrides: tuple[str, ...], top: Path) -> Job:
        """The job of some overrides, in its folder below `top`."""
        return cls(config, overrides, top / run_folder(overrides, config.seed))

    @property
    def label(self) -> str:
        """Such as `phase1_baseline seed=1`."""
        return f"{self.folder.parent.name} {self.folder.name}"


def groups_of(jobs: Sequence[Job], size: int) -> list[tuple[Job, ...]]:
    """The jobs in groups of at most `size` that differ in their seed alone."""
    if size == 1:
        return [(job,) for job in jobs]
    alike: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        config = job.config.copy()
        config.seed = 0
        alike[f"{job.folder.parent}\n{OmegaConf.to_yaml(config)}"].append(job)
    return [
        tuple(each[first : first + size])
        for each in alike.values()
        for first in range(0, len(each), size)
    ]


def side_by_side_seconds(seconds: Sequence[float], size: int) -> float:
    """How long jobs take together, `size` at a time and in their order."""
    busy = [0.0] * size
    for each in seconds:
        busy[busy.index(min(busy))] += each
    return max(busy)


def duration(seconds: float) -> str:
    """Seconds for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `skipped` if it had ended before, else the status of its result."""

    status: str
    loss: float
    seconds: float
    reason: str


def read_outcome(job: Job, status: str | None = None) -> Outcome:
    """What a job's result says; `status` in the place of `done`."""
    try:
        result = read_result(job.folder)
    except ValueError as error:
        return Outcome("not started", math.inf, 0.0, str(error))
    loss = result.get("best_val_loss")
    return Outcome(
        status=status if status and result["status"] == "done" else result["status"],
        loss=math.inf if loss is None else loss,
        seconds=result.get("seconds") or 0.0,
        reason=(result.get("error") or "").partition("\n")[0],
    )
