"""What was computed from a large text before, in files that are mapped into memory.

An entry is a folder of arrays. Its name is a digest of all that its content follows from: the text,
the arguments, the code that computed it and the version of the tokenizer library. So nothing in it
can be out of date, and several processes that compute the same thing write the same entry. Reading
executes nothing. An entry that is damaged is computed anew, and a folder that cannot be written is
left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

Arrays = dict[str, np.ndarray]

MAX_BYTES = 4_000_000_000  # of all entries; those that were not used for longest go first
CHECKSUMS = "checksums.json"

# What is raised for a file that is missing, cut short, changed or of another kind.
UNREADABLE = (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, MemoryError)

# The code that decides what the entries hold.
SOURCES = (
    "data/batch.py",
    "data/cache.py",
    "data/card.py",
    "data/encoded.py",
    "data/sources/corpora.py",
    "data/sources/sentences.py",
    "data/tokenizer.py",
    "statistics/ngram.py",
    "statistics/references.py",
)


class Cache:
    """Named arrays in a folder. Nothing is written before `write` is called.

    Args:
        folder: where the entries lie; made by `write` if it is missing. None keeps nothing.
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
        entry = self._folder / _digest(name, follows_from)
        arrays = _read(entry)
        if arrays is None:
            arrays = self._unwritten[entry] = compute()
        return arrays

    def write(self) -> None:
        """Write what was computed since, each entry whole or not at all."""
        with contextlib.suppress(OSError):
            for entry, arrays in self._unwritten.items():
                partial = entry.with_suffix(f".{os.getpid()}.partial")
                try:
                    partial.mkdir(parents=True, exist_ok=True)
                    _write(partial, arrays)
                    shutil.rmtree(entry, ignore_errors=True)  # one that was damaged
                    partial.rename(entry)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
            if self._folder and self._unwritten:
                _remove_oldest(self._folder)
        self._unwritten.clear()


def _write(entry: Path, arrays: Arrays) -> None:
    for name, array in arrays.items():
        np.save(entry / f"{name}.npy", array, allow_pickle=False)
    checksums = {name: zlib.crc32(array.data) for name, array in arrays.items()}
    (entry / CHECKSUMS).write_text(json.dumps(checksums))


def _read(entry: Path) -> Arrays | None:
    """The arrays of an entry, mapped into memory; None where it is missing or damaged."""
    try:
        checksums = json.loads((entry / CHECKSUMS).read_text())
        arrays = {}
        for name, checksum in checksums.items():
            arrays[name] = np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            if zlib.crc32(arrays[name].data) != checksum:
                return None
    except UNREADABLE:
        return None
    with contextlib.suppress(OSError):
        os.utime(entry)  # it was used
    return arrays


def _remove_oldest(folder: Path) -> None:
    """Keep the entries together below `MAX_BYTES`."""
    entries = [path.parent for path in folder.glob(f"{'[0-9a-f]' * 64}/{CHECKSUMS}")]
    total = 0
    for entry in sorted(entries, key=lambda entry: -entry.stat().st_mtime):
        total += sum(file.stat().st_size for file in entry.iterdir())
        if total > MAX_BYTES:
            shutil.rmtree(entry, ignore_errors=True)


def _digest(name: str, follows_from: Mapping[str, Any]) -> str:
    content = [name, dict(follows_from), _code_digest(), tokenizers.__version__]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def _code_digest() -> str:
    code = hashlib.sha256()
    for path in SOURCES:
        code.update(files("newllm").joinpath(path).read_bytes())
    return code.hexdigest()
