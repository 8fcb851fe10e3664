"""Resuming a single run by its folder: `python -m newllm.train run=FOLDER`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from newllm.runs.directory import RunConflict, has_ended, read_config, read_result

Attempt = Callable[[DictConfig, Path, Sequence[str], bool], tuple[Any, str | None]]


def resume(folder: Path, trusted_packages: Sequence[str], attempt: Attempt) -> int:
    """Resume a run from its last checkpoint and return the exit code.

    Args:
        folder: the run directory.
        trusted_packages: packages of the user that the run has parts from.
        attempt: trains a configuration in a folder and returns the result and, if it failed, why.
    """
    try:
        result = read_result(folder)
        if result["status"] == "running":
            raise RunConflict(f"{folder}: is running; wait for it or stop it")
        config = read_config(folder)
        if has_ended(folder, config, ways_out="train it anew"):
            if result["status"] == "diverged":
                raise RunConflict(
                    f"{folder}: diverged and would diverge again: {result.get('error')}"
                )
            best, epoch = result.get("best_val_loss"), result.get("best_epoch")
            found = "" if best is None else f"; best validation loss {best:.4f} in epoch {epoch}"
            print(f"{folder}: is done{found}")
            return 0
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if not (folder / "checkpoints" / "last.ckpt").is_file():
        print(f"{folder}: has no checkpoint yet; starting from the beginning", file=sys.stderr)
    config.trusted_packages = list(trusted_packages)  # a stranger's run may not name its own
    # With another number of threads, sums differ in their last digits.
    torch.set_num_threads(min(max(result.get("threads", 1), 1), os.cpu_count() or 1))
    _, reason = attempt(config, folder, result.get("overrides", []), True)
    return 1 if reason else 0
