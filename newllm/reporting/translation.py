"""The words of the report in each of its languages."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from importlib.resources import files

Translate = Callable[[str], str]

LANGUAGES = ("en", "ja")


def vocabulary(lang: str) -> dict[str, str]:
    """The words of `labels_LANG.toml`, by the English ones; English itself has no such file."""
    file = files("newllm.reporting").joinpath(f"labels_{lang}.toml")
    return {} if lang == "en" else tomllib.loads(file.read_text("utf-8"))


def translator(lang: str) -> Translate:
    """Translates English text into a language; text without a translation stays English."""
    words = vocabulary(lang)
    return lambda text: words.get(text, text)
