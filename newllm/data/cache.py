"""Arrays computed from a large text, kept in memory-mapped files for the next process.

An entry is a folder of arrays. Its name is a digest of everything that the arrays depend on: the
text, the arguments, the code and the version of the tokenizer library. An entry is therefore never
out of date, and processes that compute the same thing write the same entry.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

Arrays = dict[str, np.ndarray]

MAX_BYTES = 4_000_000_000  # of all entries; those unused for longest are removed
NAMES = "names.json"  # of the arrays of an entry, so that a missing one is noticed
CODE = (
    "data/**/*.py",
    *(f"statistics/{name}.py" for name in ("compression", "ngram", "references")),
)


class Cache:
    """Named arrays in a folder. Nothing is written before `write` is called.

    Args:
        folder: where the entries lie. `write` makes it. None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._unwritten: dict[Path, Arrays] = {}

    def get(
        self, name: str, depends_on: Mapping[str, Any], compute: Callable[[], Arrays]
    ) -> Arrays:
        """What `compute` returns, or returned to an earlier process.

        Args:
            name: of the entry.
            depends_on: everything that the arrays depend on beside the code, as plain values.
            compute: returns arrays of numbers by name.
        """
        if self._folder is None:
            return compute()
        content = [name, dict(depends_on), _code_digest(), tokenizers.__version__]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        entry = self._folder / digest
        arrays = _read(entry)
        if arrays is None:
            arrays = self._unwritten[entry] = compute()
        return arrays

    def write(self) -> None:
        """Write the new entries, each as a whole. A folder that cannot be written is left alone."""
        with contextlib.suppress(OSError):
            for entry, arrays in self._unwritten.items():
                partial = entry.with_suffix(f".{os.getpid()}.partial")
                try:
                    partial.mkdir(parents=True, exist_ok=True)
                    for name, array in arrays.items():
                        np.save(partial / f"{name}.npy", array, allow_pickle=False)
                    (partial / NAMES).write_text(json.dumps([*arrays]))
                    shutil.rmtree(entry, ignore_errors=True)  # a damaged one
                    partial.rename(entry)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
            if self._folder and self._unwritten:
                _remove_oldest(self._folder)
        self._unwritten.clear()


def _read(entry: Path) -> Arrays | None:
    """The arrays of an entry, mapped into memory. None if it is missing or damaged."""
    try:
        arrays = {
            name: np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in json.loads((entry / NAMES).read_text())
        }
        os.utime(entry)  # marks it as used
    except (OSError, ValueError, EOFError):
        return None
    return arrays


def _remove_oldest(folder: Path) -> None:
    entries = [entry for entry in folder.glob("[0-9a-f]" * 64) if entry.is_dir()]
    total = 0
    for entry in sorted(entries, key=lambda entry: -entry.stat().st_mtime):
        total += sum(file.stat().st_size for file in entry.iterdir())
        if total > MAX_BYTES:
            shutil.rmtree(entry, ignore_errors=True)


@cache
def _code_digest() -> str:
    code = hashlib.sha256()
    package = Path(__file__).parents[1]
    for pattern in CODE:
        for file in sorted(package.glob(pattern)):
            code.update(file.read_bytes())
    return code.hexdigest()
