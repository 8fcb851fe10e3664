"""A single run that goes on by its folder: `python -m newllm.train run=FOLDER`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from newllm.config.arguments import RUN
from newllm.runs.directory import RunConflict, has_ended, read_config, read_result

TRUSTED = "trusted_packages"

Attempt = Callable[[DictConfig, Path, Sequence[str], bool], tuple[Any, str | None]]


def resume(arguments: Sequence[str], attempt: Attempt) -> int:
    """Go on with a run, as its folder says, from its last checkpoint; returns the exit code.

    Args:
        arguments: `run=FOLDER`, and `trusted_packages=[...]` where the run has parts from there.
        attempt: trains a configuration in a folder, and returns why it failed, if it did.
    """
    try:
        folder, trusted = _parse(arguments)
        result = read_result(folder)
        if result["status"] == "running":
            raise RunConflict(f"{folder}: is running; wait for it or stop it")
        config = read_config(folder)
        if has_ended(folder, config, ways_out="train it anew"):
            return _tell_end(folder, result)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if not (folder / "checkpoints" / "last.ckpt").is_file():
        print(f"{folder}: has no checkpoint yet; starting from the beginning", file=sys.stderr)
    config.trusted_packages = trusted  # a run of somebody else's may not name its own
    # Other sums would give other weights.
    torch.set_num_threads(min(max(result.get("threads", 1), 1), os.cpu_count() or 1))
    _, reason = attempt(config, folder, result.get("overrides", []), True)
    return 1 if reason else 0


def _parse(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    chosen = dict(word.partition("=")[::2] for word in arguments)
    if others := [word for word in arguments if word.partition("=")[0] not in (RUN, TRUSTED)]:
        raise ValueError(
            f"{others[0]}: run=FOLDER uses the configuration of that run; remove "
            "this override, or start a new run with it"
        )
    packages = re.fullmatch(r"\[([\w.,]*)\]", chosen.get(TRUSTED, "[]"))
    if not packages:
        raise ValueError(f"{TRUSTED}={chosen[TRUSTED]}: must be a list, such as [my_package]")
    return Path(chosen[RUN]), [name for name in packages[1].split(",") if name]


def _tell_end(folder: Path, result: dict[str, Any]) -> int:
    """What came of a run that has ended."""
    if result["status"] == "diverged":
        raise RunConflict(f"{folder}: diverged and would diverge again: {result.get('error')}")
    best, epoch = result.get("best_val_loss"), result.get("best_epoch")
    print(f"{folder}: is done; best validation loss {best} in epoch {epoch}")
    return 0
