"""A small folder that stands for the standard library."""

from pathlib import Path

import pytest

from newllm.data.sources import standard_library
from newllm.data.sources.corpora import SPLITS

MODULE = '''"""Counts {name}s.

>>> count_{name}("{name}  {name}")
2
"""


def count_{name}(text):
    """How many times {name} is in a text.

    >>> count_{name}("")
    0
    >>> for text in ["a {name}"]:
    ...     count_{name}(text) + 1
    2
    """
    return text.split().count("{name}")  # ½
'''


def small_library(folder: Path, monkeypatch: pytest.MonkeyPatch, num_modules: int = 4) -> None:
    """Some modules for each split, the first of which is a package."""
    library = folder / "library"
    numbers = dict.fromkeys(SPLITS, 0)
    for number in range(1000):
        name = f"fruit{number}"
        split = standard_library.split_of(name)
        if numbers[split] < num_modules:
            numbers[split] += 1
            file = library / name / "__init__.py" if number == 0 else library / f"{name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(MODULE.format(name=name), encoding="utf-8")
    monkeypatch.setattr(standard_library, "library_folder", lambda: library)
