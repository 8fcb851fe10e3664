"""The words of the report in each of its languages."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from importlib.resources import files

Translate = Callable[[str], str]

LANGUAGES = ("en", "ja")


def translator(lang: str) -> Translate:
    """The words of a language, by the English ones."""
    if lang == "en":
        return lambda text: text
    words = tomllib.loads(
        files("newllm.reporting").joinpath(f"labels_{lang}.toml").read_text("utf-8")
    )
    return lambda text: words[text]
