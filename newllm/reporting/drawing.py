"""Common parts of all figures: colours, axes, literal texts, fonts, and faults that end no run.

Any word of a user's text can become a label: `$` starts no formula, and a letter that matplotlib's
own font lacks is taken from a font of the machine that has it.
"""

from __future__ import annotations

import io
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatterMathtext, LogLocator, MaxNLocator, NullFormatter

from newllm.runs.writing import write_bytes

# Of Okabe & Ito (2008), which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
PINK, YELLOW, SKY, BLACK = "#CC79A7", "#E69F00", "#56B4E9", "#000000"
OWN_FONT = "DejaVu Sans"  # comes with matplotlib
# Fonts with letters that it lacks, in the order in which they are tried.
MORE_FONTS = ("Noto Sans CJK JP", "IPAexGothic", "IPAGothic", "TakaoGothic", "VL Gothic",
              "Hiragino Sans", "Yu Gothic", "MS Gothic", "WenQuanYi Zen Hei", "Microsoft YaHei",
              "PingFang SC", "Malgun Gothic", "Apple SD Gothic Neo", "NanumGothic",
              "Arial Unicode MS", "Noto Sans Devanagari", "Noto Sans Thai")  # fmt: skip
# Matplotlib's warnings of letters and scripts that it cannot draw.
UNDRAWABLE = r"Glyph .* missing from|Matplotlib currently does not support"
LONGEST_LABEL = 24  # characters of a tick label


class Figure(MatplotlibFigure):
    """A matplotlib figure with literal texts, in fonts that have their letters."""

    def write_png(self, path: Path) -> None:
        """Write the whole file or nothing, and not through a link, like all files of a run."""
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=120)
        write_bytes(path, picture.getvalue())

    def headline(self, title: str) -> None:
        """A title over all axes, in at most three lines."""
        width = int(11 * self.get_figwidth())
        lines = textwrap.wrap(title, width, max_lines=3, placeholder=" …")
        self.suptitle("\n".join(lines), fontsize=11)

    def draw(self, renderer: Any) -> None:
        """Draw everything, including the labels that matplotlib makes on drawing."""
        for axes in self.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
                    axis.set_major_formatter("{x:g}")
                    axis.set_minor_formatter(NullFormatter())
                axis.get_ticklabels()  # fills in their texts
        texts: list[Text] = self.findobj(Text)
        families = font_families()
        for text in texts:
            text.set_parse_math(False)
            text.set_fontfamily(families)
        if not can_show("".join(text.get_text() for text in texts)):
            _warn_of_missing_letters()
        style = matplotlib.rc_context({"text.parse_math": False, "font.family": families})
        with style, warnings.catch_warnings():
            warnings.filterwarnings("ignore", UNDRAWABLE, UserWarning)
            super().draw(renderer)


@contextmanager
def never_fatal(picture: str) -> Iterator[None]:
    """Turn a fault in drawing into a line on stderr, so that it ends no run.

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


def plain(axes: Axes) -> None:
    """A faint grid, and a frame only where there is an axis."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def log_ticks(axis: Axis, subs: tuple[float, ...] = (1, 2, 5)) -> None:
    """Plain numbers on a logarithmic axis, also between the powers of ten."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def shortened(label: str) -> str:
    """A tick label of at most `LONGEST_LABEL` characters."""
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def epoch_axis(axes: Axes, label: str = "epoch") -> None:
    """Whole epochs on the horizontal axis, after all curves are drawn; a single epoch centred."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    first, last = axes.dataLim.intervalx
    if first == last:
        axes.set_xticks([first])
        axes.set_xlim(first - 0.5, first + 0.5)


def can_show(text: str) -> bool:
    """Whether the fonts in use have all letters of a text."""
    letters = frozenset().union(*(_letters_of(family) for family in font_families()))
    return all(ord(letter) in letters for letter in text if letter.isprintable())


@cache
def font_families() -> list[str]:
    """Matplotlib's own font, and those of `MORE_FONTS` that this machine has."""
    manager = font_manager.fontManager
    # Matplotlib remembers the fonts that it found on its first use.
    known = {font.fname for font in manager.ttflist}
    for file in font_manager.findSystemFonts():
        if file not in known:
            with suppress(OSError, RuntimeError, NotImplementedError):  # such as coloured pictures
                manager.addfont(file)
    installed = set(manager.get_font_names())
    return [OWN_FONT, *(name for name in MORE_FONTS if name in installed)]


@cache
def _letters_of(font: str) -> frozenset[int]:
    path = font_manager.findfont(font_manager.FontProperties(family=[font]))
    return frozenset(font_manager.get_font(path).get_charmap())


@cache  # once
def _warn_of_missing_letters() -> None:
    print(
        "pictures show boxes for letters that no known font of this machine has; "
        "a font such as Noto Sans CJK may have them",
        file=sys.stderr,
    )
