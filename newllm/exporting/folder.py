"""The folder of an export: written whole or not at all, with what every format describes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from newllm.runs.directory import LoadedRun
from newllm.runs.identity import git_revision

TOKENIZER = "tokenizer.json"


@contextlib.contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """A partial folder to fill, which becomes `path` at the end and is removed on failure.

    Raises:
        ValueError: something lies at `path` already, or the folder cannot be made.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
        partial.mkdir()
        yield partial
        if os.path.lexists(path):
            raise ValueError(f"{path}: already exists; choose another --output or remove it")
        partial.rename(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written; {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def described(run: LoadedRun, packages: Sequence[str]) -> dict[str, Any]:
    """What the JSON file of every format tells of a run; `packages` wrote the file beside it."""
    return {
        "name": run.result.get("name") or run.model.description,
        "description": run.model.description,
        "parameters": sum(weight.numel() for weight in run.model.parameters()),
        "vocabulary_size": run.model.vocabulary_size,
        "tokenizer": None if run.tokenizer is None else TOKENIZER,
        "versions": {
            **{package: version(package) for package in ("newllm", "torch", *packages)},
            "revision": git_revision(),
        },
    }


def write_tokenizer(folder: Path, run: LoadedRun) -> None:
    """Write the tokenizer of a run, if it has one."""
    if run.tokenizer is not None:
        (folder / TOKENIZER).write_text(run.tokenizer.to_json(), encoding="utf-8")


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
