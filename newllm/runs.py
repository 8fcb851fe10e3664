"""The run directory: who owns it, what it says of its run, and how a run is loaded again.

A run directory holds `config.yaml` (all that rebuilds the run), `tokenizer.json`, `result.json`,
`metrics.csv` (by epoch), `steps.csv` (by step), TensorBoard events, `curves.png` and
`checkpoints/`. A lock of the operating system owns it while its run is alive: a result that says
`running` beside a free lock is that of an interrupted run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from newllm.config.build import ConfigFault, instantiate
from newllm.data.tokenizer import Tokenizer
from newllm.identity import config_hash, differences, hashed
from newllm.models.language_model import LanguageModel

PATIENCE = 30.0  # seconds to wait for a run that was asked to end


class RunConflict(ValueError):
    """The folder belongs to another run."""


class RunDirectory:
    """A run's folder, owned by this process until `release`.

    Args:
        path: the folder; made if it is missing.
        goes_on: whether it may hold a run already, which then goes on.

    Raises:
        RunConflict: if another process owns it, or it holds a run that shall not go on.
    """

    def __init__(self, path: Path, goes_on: bool = False) -> None:
        self.path, self._goes_on = path, goes_on
        self._result: dict[str, Any] = {}
        self._refuse_if_used()
        path.mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] = (path / ".lock").open("a")
        try:
            self._take_lock(PATIENCE if goes_on else 0.0)
            self._refuse_if_used()  # by a run that ended just before
        except BlockingIOError as error:
            self._lock.close()
            raise RunConflict(f"{path}: another run is writing here; choose another") from error
        except RunConflict:
            self._lock.close()
            raise
        if goes_on:
            with contextlib.suppress(OSError, ValueError):
                self._result = json.loads(self.result_file.read_text())

    @property
    def result(self) -> dict[str, Any]:
        """What the result says so far."""
        return dict(self._result)

    @property
    def status(self) -> str | None:
        """What the result says so far."""
        return self._result.get("status")

    @property
    def seconds_before(self) -> float:
        """What the run took so far, if it goes on from a checkpoint."""
        return (self._result.get("seconds") or 0.0) if self.last_checkpoint else 0.0

    def _take_lock(self, patience: float) -> None:
        """Take the lock; wait so many seconds for one who is about to give it up."""
        deadline = time.monotonic() + patience
        while True:
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.1)

    def _refuse_if_used(self) -> None:
        if self.result_file.exists() and not self._goes_on:
            raise RunConflict(f"{self.path}: holds a run already; choose another or remove it")

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path | None:
        """Where an unfinished run goes on from, if it came that far."""
        path = self.checkpoints / "last.ckpt"
        return path if path.is_file() else None

    def remove_last_checkpoint(self) -> None:
        """An ended run has no need to go on."""
        (self.checkpoints / "last.ckpt").unlink(missing_ok=True)

    def record(self, **fields: Any) -> dict[str, Any]:
        """Add fields to `result.json`, whole or not at all; returns all fields so far."""
        self._result |= fields
        try:
            write_text(self.result_file, json.dumps(self._result, indent=2) + "\n")
        except OSError as error:
            self._record_in_place(error)
            raise
        return dict(self._result)

    def _record_in_place(self, error: OSError) -> None:
        """Say in the old result that the run failed: a full disk has no room for a new one.

        Without indentation it is shorter than what is there, and so needs no room.
        """
        if self._result.get("status") == "running" or not self.result_file.is_file():
            return
        end = {"status": "failed", "error": self._result.get("error") or f"OSError: {error}"}
        with contextlib.suppress(OSError, ValueError):
            old = self.result_file.read_text()
            text = json.dumps(json.loads(old) | end)
            if len(text.encode()) <= len(old.encode()):
                with self.result_file.open("r+") as file:
                    file.write(text)
                    file.truncate()

    def forget_failure(self) -> None:
        """A failed run that is tried again counts as interrupted: a new reason is its own."""
        if self.status == "failed":
            self._result.pop("error", None)
            self.record(status="interrupted")

    def write_config(self, config: DictConfig) -> None:
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(config, resolve=True))

    def release(self) -> None:
        """Give up ownership. The lock's file stays: removing it could rob the next owner."""
        self._lock.close()


ENDS = ("done", "diverged")  # a run that ended so ends the same way every time


def has_ended(path: Path, config: DictConfig) -> bool:
    """Whether a folder holds this very run, ended; one that only started can go on.

    Raises:
        RunConflict: if it holds a run of another configuration, or a broken one.
    """
    if not (path / "result.json").is_file():
        return False
    ways_out = "name=NEW keeps both, overwrite=true moves the old one aside"
    try:
        result = read_result(path)
        if "config_hash" not in result:
            return False  # it failed before it could say what it is
        found: list[str] = []
        if result["config_hash"] != config_hash(config):
            found += differences(hashed(_read_config(path / "config.yaml")), hashed(config))
            found = found or ["by an older version of newllm, or from another text"]
    except ValueError as error:
        raise RunConflict(f"{error}; {ways_out}") from error
    if found:
        shown = "; ".join(found[:3]) + (" ..." if len(found) > 3 else "")
        raise RunConflict(f"{path}: holds a run made otherwise ({shown}); {ways_out}")
    return result["status"] in ENDS


def move_aside(path: Path, top: Path) -> Path:
    """Move a run below `top` to `top/_replaced`, nothing of it lost; return where it went.

    Raises:
        RunConflict: if a living process owns it.
    """
    if _is_owned(path):
        raise RunConflict(f"{path}: another process is writing here; wait for it or stop it")
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    aside = top / "_replaced" / stamp / path.relative_to(top)
    aside.parent.mkdir(parents=True)
    path.rename(aside)
    return aside


@dataclass(frozen=True)
class LoadedRun:
    """A run as a notebook wants it: the best model in evaluation mode, and what belongs to it."""

    path: Path
    config: DictConfig
    result: dict[str, Any]
    model: LanguageModel
    tokenizer: Tokenizer


def load_run(path: str | Path, trusted_packages: Sequence[str] = ()) -> LoadedRun:
    """Load a run directory with the weights of its best epoch.

    Nothing in the directory is executed: objects are built from trusted modules only, and
    checkpoints are read as plain tensors.

    Args:
        path: the run directory.
        trusted_packages: of the user's own, where the model has parts from there.

    Raises:
        ValueError: if it is no run directory, its run has no checkpoint yet, or a file is broken.
    """
    path = Path(path)
    needed = ("config.yaml", "result.json", "tokenizer.json", "checkpoints/best.ckpt")
    if missing := [name for name in needed if not (path / name).is_file()]:
        raise ValueError(f"{path}: not a run directory with a checkpoint; lacks {missing[0]}")
    result = read_result(path)
    config = _read_config(path / "config.yaml")
    try:
        model = instantiate(config.model, trusted_packages)
    except ConfigFault:
        raise  # it names the key
    except ValueError as error:
        raise ValueError(f"{path}: config.yaml describes no model; {error}") from error
    if not isinstance(model, LanguageModel):
        raise ValueError(f"{path}: config.yaml names no language model")
    try:
        load_weights(model, path / "checkpoints" / "best.ckpt")
        tokenizer = Tokenizer.load(path / "tokenizer.json")
    except UnpicklingError as error:  # torch adds advice that would be dangerous here
        raise ValueError(f"{path}: cannot be loaded; checkpoints/best.ckpt is damaged") from error
    except Exception as error:  # torch and tokenizers raise a dozen kinds for a broken file
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: cannot be loaded; {reason}") from error
    return LoadedRun(path, config, result, model.eval(), tokenizer)


def read_result(path: Path) -> dict[str, Any]:
    """What a run says of itself; a `running` one that nobody owns is `interrupted`.

    Raises:
        ValueError: if the folder holds no run, or its result is broken.
    """
    try:
        result = json.loads((path / "result.json").read_text())
        if not isinstance(result, dict) or "status" not in result:
            raise ValueError("it holds no status")
    except OSError as error:
        raise ValueError(f"{path}: not a run directory; lacks result.json") from error
    except ValueError as error:
        raise ValueError(f"{path}: result.json is broken; {error}") from error
    if result["status"] == "running" and not _is_owned(path):
        result["status"] = "interrupted"
    return result


def _is_owned(path: Path) -> bool:
    """Whether a living process owns the run."""
    try:
        with (path / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _read_config(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: cannot be read; {reason}") from error
    if not isinstance(config, DictConfig) or not isinstance(config.get("model"), DictConfig):
        raise ValueError(f"{path}: describes no model")
    return config


def load_weights(model: torch.nn.Module, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into a model of the same shape."""
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file to write, which then takes the place of `path`; it is gone if that fails.

    What a full disk cut off would else keep the room that the result needs to say so.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
