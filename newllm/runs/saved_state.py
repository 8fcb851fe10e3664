"""Files that hold the state of a run's model after some tokens, to go on from later."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from newllm.runs.directory import LoadedRun
from newllm.runs.files import read_saved, write_saved

# Kinds of states, and what writes each.
WRITERS = {
    "dialogue": "/save of newllm.generate",
    "text": "--save-state of newllm.evaluate",
}


def write_state(path: Path, kind: str, run: LoadedRun, content: dict[str, Any]) -> None:
    """Write a state, whole or not at all.

    Args:
        path: the file, which is replaced if it holds a state.
        kind: a key of `WRITERS`.
        run: whose model it is of.
        content: tensors, numbers and containers.

    Raises:
        ValueError: it cannot be written, or would replace something else.
    """
    check_place(path)
    write_saved(path, {"kind": kind, "model": fingerprint(run), "content": content})


def read_state(path: Path, kind: str, run: LoadedRun) -> Any:
    """Read the content of a state.

    Raises:
        ValueError: the file cannot be read, holds something else, or is of another kind or model.
    """
    try:
        saved = read_saved(path)
    except ValueError as error:
        raise ValueError(f"{path}: is not a saved state; {error}") from error
    if not _is_state(saved):
        raise ValueError(f"{path}: is not a saved state")
    if saved["kind"] != kind:
        found, wanted = WRITERS[saved["kind"]], WRITERS[kind]
        raise ValueError(f"{path}: was written by {found}; this takes what {wanted} wrote")
    if saved["model"] != fingerprint(run):
        raise ValueError(f"{path}: is a state of another model than that of {run.path}")
    return saved["content"]


def check_place(path: Path) -> None:
    """Check that a state can be written to a file without losing anything else.

    Raises:
        ValueError: it is a folder, is in none, or holds something other than a state.
    """
    try:
        if not path.parent.is_dir():
            raise ValueError(f"{path.parent}: no such folder; make it first")
        if path.is_dir():
            raise ValueError(f"{path}: is a folder, not a file")
        if not path.exists():
            return
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    reason = ""
    try:
        if _is_state(read_saved(path, mmap=True)):
            return
    except ValueError as error:
        reason = f"{error}; "
    raise ValueError(f"{path}: exists and is not a saved state; {reason}choose another name")


def _is_state(saved: object) -> bool:
    return (
        isinstance(saved, dict)
        and saved.keys() == {"kind", "model", "content"}
        and saved["kind"] in tuple(WRITERS)
    )


def fingerprint(run: LoadedRun) -> str:
    """A digest of a run's weights and tokenizer; a state is meaningful only with these."""
    digest = hashlib.sha256()
    if run.tokenizer is not None:
        digest.update(run.tokenizer.to_json().encode())
    for name, weight in run.model.state_dict().items():
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(weight.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
