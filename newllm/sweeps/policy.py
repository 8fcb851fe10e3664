"""Whether a job is run, skipped, resumed or refused, by what its folder holds."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from newllm.config.naming import record_of
from newllm.runs.directory import (
    ENDS,
    RunConflict,
    RunDirectory,
    has_ended,
    move_aside,
    read_result,
)
from newllm.training.run import attempt


def run_job_of_sweep(
    config: DictConfig, folder: Path, overrides: Sequence[str], top: Path
) -> float | None:
    """Run a job unless it has ended, from its last checkpoint if any; record why it failed."""
    if config.plan:
        return attempt(config, folder, overrides, goes_on=True)[0].get("best_val_loss")
    try:
        ended = has_ended_here(config, folder, top)
    except RunConflict as error:
        print(error, file=sys.stderr)
        return math.nan
    if ended:
        result = read_result(folder)
        return float(result["best_val_loss"]) if result["status"] == "done" else math.inf
    _forget_failure(folder)
    result, reason = attempt(config, folder, overrides, goes_on=True)
    if reason:
        record_failure(folder, reason, config.seed, overrides)
    return result.get("best_val_loss")


def has_ended_here(config: DictConfig, folder: Path, top: Path) -> bool:
    """Whether a job has ended; with overwrite=true, another run in its folder makes room.

    Raises:
        RunConflict: another run is there and stays.
    """
    try:
        return has_ended(folder, config)
    except RunConflict:
        if config.plan:
            return False
        if not config.overwrite:
            raise
    print(f"{folder}: moved to {move_aside(folder, top)}", file=sys.stderr)
    return False


def _forget_failure(folder: Path) -> None:
    """Remove an old reason before anything can fail anew."""
    with contextlib.suppress(ValueError):  # of which a conflict is one
        if read_result(folder)["status"] == "failed":
            run = RunDirectory(folder, goes_on=True)
            run.record(status="interrupted", error=None)
            run.release()


def record_failure(folder: Path, reason: str, seed: int, overrides: Sequence[str]) -> None:
    """Record why a run failed, unless its result says so or belongs to another run."""
    with contextlib.suppress(RunConflict):
        run = RunDirectory(folder, goes_on=True)
        if run.status not in (*ENDS, "failed"):
            run.record(seed=seed, **record_of(overrides), status="failed", error=reason)
        run.release()
