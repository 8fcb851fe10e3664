"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. A link in its place is replaced, never followed."""
    # "x" refuses a link that somebody puts in the place of the partial file.
    with written_whole(path) as partial, partial.open("xb") as file:
        file.write(content)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A partial file to write, which replaces `path` at the end and is removed on failure."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
