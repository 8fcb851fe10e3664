"""Reading files that a stranger may have written.

Every fault is a ValueError that gives the reason alone; the caller adds the name of the file.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

PATHS = ("path", "validation_path", "test_path", "name")  # settings that may name files
LONGEST_LINE = 300  # characters of a message that quotes a file
# Control characters, changes of the direction of writing, and surrogates.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text without characters that a terminal would obey instead of showing."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: object) -> str:
    """The text as part of a message: one printable line, shortened in the middle."""
    line = printable(" ".join(str(text).split()))
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} ... {line[-half:]}"


def is_there(path: str) -> bool:
    """Whether a text is the path of a file or folder."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or with a null byte
        return False


def files_below(path: Path) -> list[Path]:
    """The files in a folder and its subfolders in order, without hidden ones; else the path."""
    if not path.is_dir():
        return [path]
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    is_hidden = re.compile(r"(^|/)\.").search
    return [file for file in files if not is_hidden(file.relative_to(path).as_posix())]


def read_bytes(path: Path, largest: int) -> bytes:
    """The content of a regular file of at most `largest` bytes.

    Raises:
        ValueError: it is missing, larger, or no regular file.
    """
    try:
        # Without the flag, opening a pipe waits for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("it is not a regular file")
            if found.st_size > largest:
                raise ValueError(f"it has {found.st_size:,} bytes, more than {largest:,}")
            return file.read(found.st_size)
    except OSError as error:
        raise ValueError(error.strerror or type(error).__name__) from error


def read_text(path: Path, largest: int) -> str:
    """The same, decoded from UTF-8."""
    try:
        return read_bytes(path, largest).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start})") from error


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is no JSON, holds NaN or infinity, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it contains {constant}, which is not JSON")


def cleaned(content: Any) -> Any:
    """Parsed JSON with all strings printable.

    Raises:
        ValueError: a number is not finite.
    """
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, float) and abs(content) == float("inf"):  # 1e999
        raise ValueError("it contains a number that is not finite")
    if isinstance(content, list):
        return [cleaned(item) for item in content]
    if isinstance(content, dict):
        return {printable(key): cleaned(value) for key, value in content.items()}
    return content
