"""The words of the report in each of its languages, and the fonts that can show them."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from matplotlib import font_manager

Translate = Callable[[str], str]

LANGUAGES = ("en", "ja")
# Names of fonts, and how their files' names begin.
JAPANESE_FONTS = {
    "Noto Sans CJK JP": "NotoSansCJK",
    "IPAexGothic": "ipaexg",
    "IPAGothic": "ipag",
    "TakaoGothic": "TakaoGothic",
    "VL Gothic": "VL-Gothic",
    "Hiragino Sans": "Hiragino",
    "Yu Gothic": "YuGoth",
    "MS Gothic": "msgothic",
}


def translator(lang: str) -> Translate:
    """The words of a language, by the English ones."""
    if lang == "en":
        return lambda text: text
    words = tomllib.loads(
        files("newllm.reporting").joinpath(f"labels_{lang}.toml").read_text("utf-8")
    )
    return lambda text: words[text]


def japanese_fonts() -> list[str]:
    """Those of this machine that figures can be labelled with in Japanese."""
    # Matplotlib remembers what it found when it was first used.
    for file in font_manager.findSystemFonts():
        if Path(file).name.startswith(tuple(JAPANESE_FONTS.values())):
            font_manager.fontManager.addfont(file)
    found = {font.name for font in font_manager.fontManager.ttflist}
    return [font for font in JAPANESE_FONTS if font in found]
