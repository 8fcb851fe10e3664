"""What all figures have in common: texts are literal, fonts have their letters, faults end nothing.

Any word of a user's text can become a label: `$` starts no formula, and a letter that matplotlib's
own font lacks is looked for in the fonts of the machine.
"""

from __future__ import annotations

import io
import os
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatterMathtext, MaxNLocator, NullFormatter

from newllm.runs.directory import write_bytes

OWN_FONT = "DejaVu Sans"  # comes with matplotlib
# Of fonts that have the same letters, the one that goes best with it.
PREFERRED = ("Noto Sans CJK JP", "IPAexGothic", "IPAGothic", "TakaoGothic", "VL Gothic",
             "Hiragino Sans", "Yu Gothic", "MS Gothic")  # fmt: skip
# What matplotlib says of letters and scripts that it cannot draw; a box stands in their place.
UNDRAWABLE = r"Glyph .* missing from|Matplotlib currently does not support"
LONGEST_LABEL = 24  # characters of a tick label


class Figure(MatplotlibFigure):
    """A matplotlib figure with literal texts, in fonts that have their letters."""

    def write_png(self, path: Path) -> None:
        """Write it whole or not at all, and through no link, as all files of a run."""
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=120)
        write_bytes(path, picture.getvalue())

    def headline(self, title: str) -> None:
        """A title over all axes, in as many lines as it needs, but no more than three."""
        width = int(11 * self.get_figwidth())
        lines = textwrap.wrap(title, width, max_lines=3, placeholder=" …")
        self.suptitle("\n".join(lines), fontsize=11)

    def draw(self, renderer: Any) -> None:
        """Draw everything, with the labels that matplotlib makes only now."""
        for axes in self.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
                    axis.set_major_formatter("{x:g}")
                    axis.set_minor_formatter(NullFormatter())
                axis.get_ticklabels()  # fills in their texts
        texts: list[Text] = self.findobj(Text)
        families = font_families(letter for text in texts for letter in text.get_text())
        for text in texts:
            text.set_parse_math(False)
            text.set_fontfamily(families)
        style = matplotlib.rc_context({"text.parse_math": False, "font.family": families})
        with style, warnings.catch_warnings():
            warnings.filterwarnings("ignore", UNDRAWABLE, UserWarning)
            super().draw(renderer)


@contextmanager
def never_fatal(picture: str) -> Iterator[None]:
    """A picture ends no run: what goes wrong in drawing it is a line on stderr.

    With HYDRA_FULL_ERROR=1 it is raised.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        reason = (str(error).strip() or "no message").splitlines()[0]
        print(
            f"warning: {picture} not drawn ({type(error).__name__}: {reason}); the run continues",
            file=sys.stderr,
        )


def shortened(label: str) -> str:
    """A label that leaves room for the figure."""
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def epoch_axis(axes: Axes, label: str = "epoch") -> None:
    """Whole epochs on the horizontal axis, after all curves are drawn; one epoch has its middle."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    first, last = axes.dataLim.intervalx
    if first == last:
        axes.set_xticks([first])
        axes.set_xlim(first - 0.5, first + 0.5)


def can_show(text: str) -> bool:
    """Whether the fonts of this machine have all letters of a text."""
    lacking = _lacking(text, [OWN_FONT])
    return not _lacking(lacking, _fonts_with(lacking))


def font_families(letters: Iterable[str]) -> list[str]:
    """Matplotlib's own font, and others of this machine for letters that it lacks.

    Says so, once, where no font has a letter.
    """
    lacking = _lacking(letters, [OWN_FONT])
    fonts = _fonts_with(lacking)
    if _lacking(lacking, fonts):
        _say_that_letters_are_missing()
    return [OWN_FONT, *fonts]


@cache  # once
def _say_that_letters_are_missing() -> None:
    print(
        "figures show boxes for characters that no installed font has; install a font such as "
        "Noto Sans CJK",
        file=sys.stderr,
    )


def _lacking(letters: Iterable[str], fonts: Iterable[str]) -> frozenset[str]:
    missing = {letter for letter in letters if letter.isprintable()}
    for font in fonts:
        missing -= {letter for letter in missing if ord(letter) in _letters_of(font)}
    return frozenset(missing)


@cache
def _fonts_with(letters: frozenset[str]) -> list[str]:
    """Fonts that have as many of the letters as there are, the best first."""
    fonts: list[str] = []
    while letters:
        best = max(
            _fonts_of_this_machine(),
            key=lambda font: (len(letters) - len(_lacking(letters, [font])), font in PREFERRED),
        )
        if (rest := _lacking(letters, [best])) == letters:
            break
        fonts.append(best)
        letters = rest
    return fonts


@cache
def _fonts_of_this_machine() -> list[str]:
    # Matplotlib remembers what it found when it was first used.
    manager = font_manager.fontManager
    known = {font.fname for font in manager.ttflist}
    for file in font_manager.findSystemFonts():
        if file not in known:
            with suppress(OSError, RuntimeError, NotImplementedError):  # such as coloured pictures
                manager.addfont(file)
    upright = {
        font.name for font in manager.ttflist if (font.style, font.weight) == ("normal", 400)
    }
    return sorted(name for name in upright if not name.startswith("Last Resort"))  # only boxes


@cache
def _letters_of(font: str) -> frozenset[int]:
    path = font_manager.findfont(font_manager.FontProperties(family=[font]))
    return frozenset(font_manager.get_font(path).get_charmap())
