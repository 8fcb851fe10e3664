"""The run directory: its owner, its result, and how a run is loaded again.

A run directory holds `config.yaml` (resolved), `tokenizer.json`, `result.json`, `metrics.csv` (by
epoch), `steps.csv` (by step), TensorBoard events, `curves.png` and `checkpoints/`. The process of
the run holds a file lock. A result with the status `running` and a free lock belongs to an
interrupted run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import torch
from omegaconf import DictConfig, OmegaConf

from newllm.config.trust import Trust
from newllm.data.reading import one_line
from newllm.data.tokenizer import Tokenizer
from newllm.models.language_model import LanguageModel
from newllm.runs import files as run_files
from newllm.runs.identity import config_hash, differences, hashed
from newllm.runs.loading import load_model
from newllm.runs.writing import write_text

BEST = "checkpoints/best.ckpt"
PATIENCE = 30.0  # seconds to wait for a run that was asked to end


class RunConflict(ValueError):
    """The folder belongs to another run."""


class RunDirectory:
    """A run's folder, owned by this process until `release`.

    Args:
        path: the folder. It is made if it is missing.
        goes_on: whether it may hold a run already, which is then resumed.

    Attributes:
        result: the fields of `result.json` so far.

    Raises:
        RunConflict: another process owns the folder, or it holds a run and `goes_on` is false or
            the result cannot be read.
    """

    def __init__(self, path: Path, goes_on: bool = False) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"
        self.result: dict[str, Any] = {}
        path.mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] = (path / ".lock").open("a")
        try:
            self._take_lock(PATIENCE if goes_on else 0.0)
            if os.path.lexists(path / "result.json"):
                if not goes_on:
                    raise RunConflict(
                        f"{path}: already contains a run; choose another folder or remove it"
                    )
                self.result = read_result(path)
        except ValueError as error:
            self._lock.close()
            raise RunConflict(str(error)) from error

    def _take_lock(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    message = f"{self.path}: another run is writing here; choose another folder"
                    raise RunConflict(message) from error
                time.sleep(0.1)

    @property
    def status(self) -> str | None:
        return self.result.get("status")

    @property
    def seconds_before(self) -> float:
        """Seconds that a run took before it was interrupted, if it resumes from a checkpoint."""
        return (self.result.get("seconds") or 0.0) if self.last_checkpoint else 0.0

    @property
    def last_checkpoint(self) -> Path | None:
        """The checkpoint that an unfinished run resumes from, if there is one."""
        path = self.checkpoints / "last.ckpt"
        return path if path.is_file() else None

    def check_last_checkpoint(self) -> None:
        """Check that the last checkpoint, if there is one, can be read.

        Raises:
            RunConflict: it is damaged.
        """
        if path := self.last_checkpoint:
            try:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:  # torch raises a dozen kinds for a broken file
                raise RunConflict(
                    f"{path}: is damaged; remove it to start the run from the beginning"
                ) from error

    def remove_last_checkpoint(self) -> None:
        (self.checkpoints / "last.ckpt").unlink(missing_ok=True)

    def record(self, **fields: Any) -> dict[str, Any]:
        """Add fields to `result.json`, atomically, and return all fields so far."""
        self.result |= fields
        try:
            text = json.dumps(_finite(self.result), indent=2, allow_nan=False)
            write_text(self.path / "result.json", f"{text}\n")
        except OSError as error:
            self._record_in_place(error)
            raise
        return self.result

    def _record_in_place(self, error: OSError) -> None:
        """Overwrite the old result with a failure: a full disk has no room for a new file.

        Without indentation the text is shorter than the old one and so needs no room.
        """
        if self.status == "running":
            return
        end = {"status": "failed", "error": self.result.get("error") or f"OSError: {error}"}
        file = self.path / "result.json"
        with contextlib.suppress(OSError, ValueError), file.open("r+") as result:
            old = result.read()
            text = json.dumps(json.loads(old) | end)
            if len(text) <= len(old):
                result.seek(0)
                result.write(text)
                result.truncate()

    def write_config(self, config: DictConfig) -> None:
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(config, resolve=True))

    def release(self) -> None:
        """Give up ownership. The lock's file stays: removing it could rob the next owner."""
        self._lock.close()


ENDS = ("done", "diverged")  # a run with one of these would end the same way again

INVISIBLE = (
    "its text (data.path or data.name) has changed or is missing, or it was made by another "
    "version of newllm"
)
WAYS_OUT = "use name=NEW to keep both, or overwrite=true to move the old run aside"


def has_ended(path: Path, config: DictConfig, ways_out: str = WAYS_OUT) -> bool:
    """Whether a folder holds this run and it has ended. Otherwise it can be resumed.

    Args:
        path: the folder.
        config: of this run.
        ways_out: what a user can do if the folder holds something else.

    Raises:
        RunConflict: the folder holds a run of another configuration, or a broken one.
    """
    if not os.path.lexists(path / "result.json"):
        return False
    try:
        result = read_result(path)
        if "config_hash" not in result:
            return False  # it failed before it was built
        if is_other := result["config_hash"] != config_hash(config):
            found = [*differences(hashed(read_config(path)), hashed(config))] or [INVISIBLE]
    except ValueError as error:
        raise RunConflict(f"{error}; {ways_out}") from error
    if is_other:
        shown = "; ".join(map(one_line, found[:3])) + (" ..." if len(found) > 3 else "")
        raise RunConflict(
            f"{path}: contains a run with another configuration ({shown}); {ways_out}"
        )
    if result["status"] == "done" and not (path / BEST).is_file():
        raise RunConflict(f"{path}: is done, but {BEST} is missing; {ways_out}")
    return result["status"] in ENDS


def move_aside(path: Path, top: Path) -> Path:
    """Move a run below `top` into `top/_replaced` and return its new folder.

    Raises:
        RunConflict: a living process owns it.
    """
    if _is_owned(path):
        raise RunConflict(f"{path}: another process is writing here; wait for it or stop it")
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    aside = top / "_replaced" / stamp / path.absolute().relative_to(top.absolute())
    aside.parent.mkdir(parents=True)
    path.rename(aside)
    return aside


@dataclass(frozen=True)
class LoadedRun:
    """A run with its best model in evaluation mode."""

    path: Path
    config: DictConfig
    result: dict[str, Any]
    model: LanguageModel
    tokenizer: Tokenizer | None  # None if tokens do not stand for text


def load_run(path: str | Path, trusted_packages: Sequence[str] = ()) -> LoadedRun:
    """Load a run directory with the weights of its best epoch.

    Nothing in the directory is executed: only layers are built, none larger than the checkpoint,
    and checkpoints are read as plain tensors.

    Args:
        path: the run directory.
        trusted_packages: other packages that parts of the model may come from.

    Raises:
        ValueError: it is no run directory, has no checkpoint yet, or a file is broken. One line.
    """
    path = Path(path)
    _check_files(path, "config.yaml", "result.json", BEST)
    result, config = read_result(path), read_config(path)
    with telling(path, f"{BEST} cannot be loaded"):
        weights = run_files.read_weights(path / BEST)
    with telling(path, "config.yaml cannot be loaded"):
        largest = (path / BEST).stat().st_size
        model = load_model(config.model, weights, Trust.in_stranger(trusted_packages), largest)
    if not result.get("has_tokenizer", True):
        return LoadedRun(path, config, result, model, None)
    _check_files(path, "tokenizer.json")
    with telling(path, "tokenizer.json cannot be loaded"):
        tokenizer = Tokenizer.load(path / "tokenizer.json")
        if tokenizer.size > model.vocabulary_size:
            raise ValueError(
                f"it has {tokenizer.size} tokens, the model {model.vocabulary_size} classes"
            )
    return LoadedRun(path, config, result, model, tokenizer)


def _check_files(path: Path, *names: str) -> None:
    for name in names:
        if not os.path.lexists(path / name):
            raise ValueError(f"{path}: is not a run directory with a checkpoint; {name} is missing")


@contextlib.contextmanager
def telling(path: Path, fault: str) -> Iterator[None]:
    """Turn any exception about a file of a run into a ValueError of one line."""
    try:
        yield
    except Exception as error:  # a file that is broken on purpose can raise anything
        reason = "; ".join(str(error).splitlines()) or type(error).__name__
        raise ValueError(f"{path}: {fault}; {one_line(reason)}") from error


def read_result(path: Path) -> dict[str, Any]:
    """The result of a run. A `running` one that no process owns is `interrupted`.

    Raises:
        ValueError: the folder holds no run, or its result is broken.
    """
    if not os.path.lexists(path / "result.json"):
        raise ValueError(f"{path}: is not a run directory; result.json is missing")
    with telling(path, "result.json is broken"):
        result = run_files.read_result(path / "result.json")
    if result["status"] == "running" and not _is_owned(path):
        result["status"] = "interrupted"
    return result


def read_config(path: Path) -> DictConfig:
    """The resolved configuration of a run. Raises ValueError if it cannot be read."""
    with telling(path, "config.yaml cannot be read"):
        return run_files.read_config(path / "config.yaml")


def _is_owned(path: Path) -> bool:
    """Whether a living process owns the run."""
    try:
        lock = os.open(path / ".lock", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(lock)
    return False


def load_weights(model: torch.nn.Module, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into a model of the same shape."""
    model.load_state_dict(run_files.read_weights(checkpoint))


def _finite(content: Any) -> Any:
    """The same content with null in the place of numbers that JSON does not have."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
