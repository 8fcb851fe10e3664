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

BEST = "checkpoints/best.ckpt"
PATIENCE = 30.0  # seconds to wait for a run that was asked to end


class RunConflict(ValueError):
    """The folder belongs to another run."""


class RunDirectory:
    """A run's folder, owned by this process until `release`.

    Args:
        path: the folder; made if it is missing.
        goes_on: whether it may hold a run already, which then goes on.

    Raises:
        RunConflict: if another process owns it, it holds a run that shall not go on, or one whose
            result cannot be read.
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
            raise RunConflict(
                f"{path}: another run is writing here; choose another folder"
            ) from error
        except RunConflict:
            self._lock.close()
            raise
        if goes_on and os.path.lexists(self.result_file):
            try:
                self._result = run_files.read_result(self.result_file)
            except ValueError as error:  # it is not ours to be written over
                self._lock.close()
                raise RunConflict(f"{path}: result.json is broken; {error}") from error

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
            raise RunConflict(
                f"{self.path}: already contains a run; choose another folder or remove it"
            )

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

    def check_last_checkpoint(self) -> None:
        """Look whether the last checkpoint, if there is one, can be read.

        Raises:
            RunConflict: it is damaged.
        """
        if path := self.last_checkpoint:
            try:
                torch.load(path, weights_only=True, mmap=True)
            except Exception as error:  # torch raises a dozen kinds for a broken file
                raise RunConflict(
                    f"{path}: is damaged; remove it to start the run from the beginning"
                ) from error

    def remove_last_checkpoint(self) -> None:
        """An ended run has no need to go on."""
        (self.checkpoints / "last.ckpt").unlink(missing_ok=True)

    def record(self, **fields: Any) -> dict[str, Any]:
        """Add fields to `result.json`, whole or not at all; returns all fields so far."""
        self._result |= fields
        try:
            text = json.dumps(_finite(self._result), indent=2, allow_nan=False)
            write_text(self.result_file, f"{text}\n")
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


# Why equal configurations make another run: by what they do not hold.
INVISIBLE = (
    "its text (data.path) has changed or is missing, or it was made by another version of newllm"
)
WAYS_OUT = "use name=NEW to keep both, or overwrite=true to move the old run aside"


def has_ended(path: Path, config: DictConfig, ways_out: str = WAYS_OUT) -> bool:
    """Whether a folder holds this very run, ended; one that only started can go on.

    Args:
        path: the folder.
        config: of this run.
        ways_out: what a user can do where it holds something else.

    Raises:
        RunConflict: if it holds a run of another configuration, or a broken one: one that is done
            but has lost its weights is broken too.
    """
    if not os.path.lexists(path / "result.json"):
        return False
    try:
        result = read_result(path)
        if "config_hash" not in result:
            return False  # it failed before it could say what it is
        found: list[str] = []
        if result["config_hash"] != config_hash(config):
            found += differences(hashed(read_config(path)), hashed(config))
            found = found or [INVISIBLE]
    except ValueError as error:
        raise RunConflict(f"{error}; {ways_out}") from error
    if found:
        shown = "; ".join(map(one_line, found[:3])) + (" ..." if len(found) > 3 else "")
        raise RunConflict(
            f"{path}: contains a run with another configuration ({shown}); {ways_out}"
        )
    if result["status"] == "done" and not (path / BEST).is_file():
        raise RunConflict(f"{path}: is done, but {BEST} is missing; {ways_out}")
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
    tokenizer: Tokenizer | None  # None where tokens do not stand for text


def load_run(path: str | Path, trusted_packages: Sequence[str] = ()) -> LoadedRun:
    """Load a run directory with the weights of its best epoch.

    Nothing in the directory is executed: only layers are built, and checkpoints are read as plain
    tensors. Nothing is built either that is larger than the checkpoint.

    Args:
        path: the run directory.
        trusted_packages: of the user's own, where the model has parts from there.

    Raises:
        ValueError: if it is no run directory, its run has no checkpoint yet, or a file is broken;
            always one line.
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
            sizes = f"it has {tokenizer.size} tokens, the model {model.vocabulary_size} classes"
            raise ValueError(sizes)
    return LoadedRun(path, config, result, model, tokenizer)


def _check_files(path: Path, *names: str) -> None:
    for name in names:
        if not os.path.lexists(path / name):
            raise ValueError(f"{path}: is not a run directory with a checkpoint; {name} is missing")


@contextlib.contextmanager
def telling(path: Path, fault: str) -> Iterator[None]:
    """Put what is wrong with a file of a run into a line."""
    try:
        yield
    except Exception as error:  # of a file that is broken on purpose, there is no list
        reason = "; ".join(str(error).splitlines()) or type(error).__name__
        raise ValueError(f"{path}: {fault}; {one_line(reason)}") from error


def read_result(path: Path) -> dict[str, Any]:
    """What a run says of itself; a `running` one that nobody owns is `interrupted`.

    Raises:
        ValueError: if the folder holds no run, or its result is broken.
    """
    if not os.path.lexists(path / "result.json"):
        raise ValueError(f"{path}: is not a run directory; result.json is missing")
    with telling(path, "result.json is broken"):
        result = run_files.read_result(path / "result.json")
    if result["status"] == "running" and not _is_owned(path):
        result["status"] = "interrupted"
    return result


def read_config(path: Path) -> DictConfig:
    """A run's configuration, resolved.

    Raises:
        ValueError: it cannot be read.
    """
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
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(lock)
    return False


def load_weights(model: torch.nn.Module, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into a model of the same shape."""
    model.load_state_dict(run_files.read_weights(checkpoint))


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a link in its place is replaced, never followed."""
    # "x" refuses a link that somebody puts in the place of the partial file.
    with written_whole(path) as partial, partial.open("xb") as file:
        file.write(content)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file to write, which then takes the place of `path`; it is gone if that fails.

    What a full disk cut off would else keep the room that the result needs to say so.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _finite(content: Any) -> Any:
    """The same with null for numbers that are not finite, which JSON has not."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
