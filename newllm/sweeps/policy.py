"""What becomes of a job whose folder may hold a run already: skipped, resumed, refused or done."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from newllm.runs.directory import RunConflict, has_ended, move_aside, read_result
from newllm.sweeps.workers import forget_failure, record_failure
from newllm.training.run import attempt


def run_job_of_sweep(
    config: DictConfig, folder: Path, overrides: Sequence[str], top: Path
) -> float | None:
    """A job is done once, goes on where it stopped, and says in its result why it failed."""
    if config.plan:
        return attempt(config, folder, overrides, goes_on=True)[0].get("best_val_loss")
    try:
        ended = has_ended(folder, config)
    except RunConflict as error:
        if not config.overwrite:
            print(error, file=sys.stderr)
            return math.nan
        print(f"{folder}: moved to {move_aside(folder, top)}", file=sys.stderr)
        ended = False
    if ended:
        result = read_result(folder)
        return float(result["best_val_loss"]) if result["status"] == "done" else math.inf
    forget_failure(folder)
    result, reason = attempt(config, folder, overrides, goes_on=True)
    if reason:
        record_failure(folder, reason, config.seed, overrides)
    return result.get("best_val_loss")
