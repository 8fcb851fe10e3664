"""What was computed from a large text before, kept in files named by what they follow from.

A file's name is a digest of all that its content follows from: the text, the arguments, the code
that computed it and the version of the tokenizer library. So nothing in it can be out of date, and
several processes that compute the same thing write the same file. Reading executes nothing. A file
that is damaged is computed anew, and a folder that cannot be written is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

Arrays = dict[str, np.ndarray]

MAX_BYTES = 1_000_000_000  # of all files together; those that were not used for longest go first

# What numpy says of a file that is missing, cut short, changed or another kind of file.
UNREADABLE = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)

# The code that decides what the files hold.
SOURCES = (
    ("newllm.data.sources", "corpora.py"),
    ("newllm.data", "tokenizer.py"),
    ("newllm.data", "batching.py"),
    ("newllm.data", "module.py"),
    ("newllm.data", "cache.py"),
    ("newllm.statistics", "ngram.py"),
    ("newllm.statistics", "references.py"),
)


class Cache:
    """Named arrays in a folder. Nothing is written before `write` is called.

    Args:
        folder: where the files lie; made by `write` if it is missing. None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._unwritten: dict[Path, Arrays] = {}

    def get(
        self, name: str, follows_from: Mapping[str, Any], compute: Callable[[], Arrays]
    ) -> Arrays:
        """What `compute` returns, or what it returned to an earlier process.

        Args:
            name: what it is.
            follows_from: all that it depends on beside the code, as plain values.
            compute: returns arrays of numbers by name.
        """
        if self._folder is None:
            return compute()
        path = self._folder / f"{_digest(name, follows_from)}.npz"
        arrays = _read(path)
        if arrays is None:
            arrays = self._unwritten[path] = compute()
        return arrays

    def write(self) -> None:
        """Writes what was computed since; each file whole or not at all."""
        with contextlib.suppress(OSError):
            for path, arrays in self._unwritten.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(f".{os.getpid()}.partial")
                try:
                    with partial.open("wb") as file:
                        np.savez(file, allow_pickle=False, **arrays)
                    partial.replace(path)
                finally:
                    partial.unlink(missing_ok=True)
            if self._folder and self._unwritten:
                self._remove_oldest(self._folder)
        self._unwritten.clear()

    @staticmethod
    def _remove_oldest(folder: Path) -> None:
        """Keeps the files together below `MAX_BYTES`."""
        found = [(path, path.stat()) for path in folder.glob("[0-9a-f]" * 64 + ".npz")]
        total = 0
        for path, status in sorted(found, key=lambda pair: -pair[1].st_mtime):
            total += status.st_size
            if total > MAX_BYTES:
                path.unlink(missing_ok=True)


def _read(path: Path) -> Arrays | None:
    """The arrays of a file; None where it is missing or damaged."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except UNREADABLE:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # it was used
    return arrays


def _digest(name: str, follows_from: Mapping[str, Any]) -> str:
    content = [name, dict(follows_from), _code_digest(), tokenizers.__version__]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def _code_digest() -> str:
    code = hashlib.sha256()
    for package, file in SOURCES:
        code.update(files(package).joinpath(file).read_bytes())
    return code.hexdigest()
