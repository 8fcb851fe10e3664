"""A single run that goes on by its folder: `python -m newllm.train run=FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig

from newllm.identity import config_hash
from newllm.runs import RunConflict, read_config, read_result

RUN, TRUSTED = "run", "trusted_packages"

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
        if result["status"] in ("done", "diverged", "running"):
            return _say_why_not(folder, result)
        config, overrides = _as_recorded(folder, result)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    config.trusted_packages = trusted  # a run of somebody else's may not name its own
    torch.set_num_threads(result["threads"])  # other sums would give other weights
    _, reason = attempt(config, folder, overrides, True)
    return 1 if reason else 0


def _parse(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    chosen = dict(word.partition("=")[::2] for word in arguments)
    if others := [word for word in arguments if word.partition("=")[0] not in (RUN, TRUSTED)]:
        raise ValueError(
            f"{others[0]}: run=FOLDER goes on with the configuration of that run; drop it, or "
            "train another run with it"
        )
    packages = yaml.safe_load(chosen.get(TRUSTED, "[]"))
    if not isinstance(packages, list):
        raise ValueError(f"{TRUSTED}={chosen[TRUSTED]}: must be a list, such as [my_package]")
    return Path(chosen[RUN]), [str(package) for package in packages]


def _say_why_not(folder: Path, result: dict[str, Any]) -> int:
    """Of a run that ended or is alive."""
    if result["status"] == "running":
        raise RunConflict(f"{folder}: is running; wait for it or stop it")
    if result["status"] == "diverged":
        raise RunConflict(f"{folder}: diverged, as it would again: {result.get('error')}")
    loss, epoch = result.get("best_val_loss"), result.get("best_epoch")
    print(f"{folder}: is done; best validation loss {loss:.4f} in epoch {epoch}")
    return 0


def _as_recorded(folder: Path, result: dict[str, Any]) -> tuple[DictConfig, list[str]]:
    """The run's configuration and what was chosen.

    Raises:
        RunConflict: a part of what decides the run has changed since.
    """
    config = read_config(folder)
    if result.get("config_hash") != config_hash(config):
        raise RunConflict(
            f"{folder}: was begun with another text or another version of newllm, or was changed; "
            "train it anew"
        )
    if not (folder / "checkpoints" / "last.ckpt").is_file():
        print(f"{folder}: has no checkpoint yet; it starts from the beginning", file=sys.stderr)
    return config, list(result["overrides"])
