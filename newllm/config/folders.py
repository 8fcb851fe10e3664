"""Whether a run can be written where it was asked for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

LONGEST_NAME = 255  # bytes that file systems give a file or folder


def folder_faults(key: str, folder: str) -> Iterator[str]:
    """A line if no folder can be made at a path; nothing is left there."""
    path = Path(folder)
    shown = folder if len(folder) <= 60 else f"{folder[:57]}..."
    try:
        if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
            yield f"{key}={shown}: name longer than {LONGEST_NAME} bytes; choose a shorter one"
            return
        if any(part.exists() and not part.is_dir() for part in (path, *path.parents)):
            yield f"{key}={shown}: is a file, not a folder"
            return
        nearest = next(part for part in (path, *path.parents) if part.is_dir())
        with tempfile.TemporaryDirectory(dir=nearest):
            pass  # asking for the rights would not tell of a disk that is read only
    except (OSError, ValueError) as error:  # of a path that is none, such as one with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        yield f"{key}={shown}: cannot be written ({reason}); choose another folder"
