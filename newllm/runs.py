"""The run directory: who owns it, what it says of its run, and how a run is loaded again.

A run directory holds `config.yaml` (all that rebuilds the run), `tokenizer.json`, `result.json`,
`metrics.csv` (by epoch), `steps.csv` (by step), TensorBoard events, `curves.png` and
`checkpoints/`. A lock of the operating system owns it while its run is alive: a result that says
`running` beside a free lock is that of an interrupted run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from omegaconf import DictConfig, OmegaConf

from newllm.config.build import instantiate
from newllm.data.tokenizer import Tokenizer
from newllm.models.language_model import LanguageModel

# Parts of the configuration that decide the weights; paths, logging and threads do not.
HASHED = ("model", "data", "optimizer", "schedule", "recipe", "countermeasures", "trainer", "seed")


class RunDirectory:
    """A run's folder, owned by this process until `release`.

    Args:
        path: the folder; made if it is missing.

    Raises:
        ValueError: if another process owns it, or it holds a finished run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] = (path / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"{path}: another run is writing here; choose another folder"
            ) from error
        if self.result_file.exists():
            raise ValueError(f"{path}: holds a run already; choose another folder or remove it")
        self._result: dict[str, Any] = {}

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def record(self, **fields: Any) -> dict[str, Any]:
        """Add fields to `result.json`, whole or not at all; returns all fields so far."""
        self._result |= fields
        write_text(self.result_file, json.dumps(self._result, indent=2) + "\n")
        return dict(self._result)

    def write_config(self, config: DictConfig) -> None:
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(config, resolve=True))

    def release(self) -> None:
        """Give up ownership; an empty folder is removed."""
        self._lock.close()
        (self.path / ".lock").unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()


@dataclass(frozen=True)
class LoadedRun:
    """A run as a notebook wants it: the best model in evaluation mode, and what belongs to it."""

    path: Path
    config: DictConfig
    result: dict[str, Any]
    model: LanguageModel
    tokenizer: Tokenizer


def load_run(path: str | Path) -> LoadedRun:
    """Load a run directory with the weights of its best epoch.

    Nothing in the directory is executed: objects are built from trusted packages only, and
    checkpoints are read as plain tensors.

    Raises:
        ValueError: if it is no run directory, or its run has no checkpoint yet.
    """
    path = Path(path)
    needed = ("config.yaml", "result.json", "tokenizer.json", "checkpoints/best.ckpt")
    if missing := [name for name in needed if not (path / name).is_file()]:
        raise ValueError(f"{path}: not a run directory with a checkpoint; lacks {missing[0]}")
    config = OmegaConf.load(path / "config.yaml")
    assert isinstance(config, DictConfig)
    model = instantiate(config.model)
    load_weights(model, path / "checkpoints" / "best.ckpt")
    result = json.loads((path / "result.json").read_text())
    return LoadedRun(path, config, result, model.eval(), Tokenizer.load(path / "tokenizer.json"))


def load_weights(model: torch.nn.Module, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into a model of the same shape."""
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def config_hash(config: DictConfig) -> str:
    """Names everything that decides the weights: equal hashes, equal runs."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    kept = {name: content[name] for name in HASHED}
    kept["data"] = {key: value for key, value in kept["data"].items() if key != "directory"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def git_revision() -> str | None:
    """The revision of the code, `-dirty` where files differ from it; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            [*command, "--abbrev=40", "--exclude=*"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
