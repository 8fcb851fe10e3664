"""A document of text, tables and figures, written as Markdown or as one HTML file."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path

import markdown
import matplotlib
from jinja2 import Template
from matplotlib.figure import Figure

PAGE = Template(
    """<!doctype html>
<html lang="{{ lang }}"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto;
       padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: left; }
th { border-bottom: 2px solid #888; }
td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; }
td code { white-space: nowrap; }
code { font-size: 12px; background: #f4f4f4; padding: 0 .2rem; }
details { margin: .8rem 0; border-top: 1px solid #ccc; padding-top: .5rem; overflow-x: auto; }
summary { cursor: pointer; font-weight: 600; }
@media print { details { break-inside: avoid-page; } body { margin: 0; } }
</style></head><body>
{{ body }}
<script>addEventListener("beforeprint", () =>
  document.querySelectorAll("details").forEach(details => details.open = true));</script>
</body></html>
"""
)


def quoted(text: object) -> str:
    """Foreign text as a cell or a line without markup."""
    words = html.escape(" ".join(str(text).split()))
    # Brackets make a link or a picture by what follows them.
    for markup in ("|", "`", "](", "]:", "][", "!["):
        words = words.replace(markup, f"&#{ord(markup[0])};{markup[1:]}")
    return words


class Document:
    """Markdown and figures, added part by part."""

    def __init__(self, title: str, lang: str) -> None:
        self.title, self.lang = title, lang
        self.parts = [f"# {title}"]
        self.figures: dict[str, Figure] = {}  # by the names of their files

    def text(self, *paragraphs: str) -> None:
        self.parts += paragraphs

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; cells are Markdown, with foreign text `quoted`."""
        lines = [headings, ["---"] * len(headings), *rows]
        self.parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        self.figures[f"{name}.png"] = figure
        self.parts.append(f"![{caption}]({name}.png)")

    def fold(self, title: str) -> None:
        """Start a part that the page shows on request."""
        self.parts.append(f'<details markdown="1"><summary>{title}</summary>')

    def unfold(self) -> None:
        self.parts.append("</details>")

    def write(self, folder: Path) -> Path:
        """Write `report.md`, figures and `index.html`, which needs neither; returns the last."""
        self._write_markdown(folder / "report.md", folder)
        body = markdown.markdown(self._content, extensions=["tables", "md_in_html"])
        for file, figure in self.figures.items():
            body = body.replace(f'src="{file}"', f'src="{_embedded(figure)}"')
        page = folder / "index.html"
        text = PAGE.render(title=self.title, body=body, lang=self.lang)
        page.write_text(text, encoding="utf-8")
        return page

    def write_markdown(self, path: Path) -> Path:
        """Write one file of Markdown, and its figures into a folder of its name."""
        self._write_markdown(path, path.with_suffix(""))
        return path

    def _write_markdown(self, path: Path, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        content = self._content.replace('<details markdown="1">', "<details>")
        for file, figure in self.figures.items():
            figure.savefig(folder / file, dpi=110)
            figure.set_layout_engine("none")  # the layout is kept, and not computed again
            place = Path(os.path.relpath(folder, path.parent), file)
            content = content.replace(f"]({file})", f"]({place})")
        path.write_text(content, encoding="utf-8")

    @property
    def _content(self) -> str:
        return "\n\n".join(self.parts) + "\n"


def _embedded(figure: Figure) -> str:
    """A figure as an address that contains the drawing."""
    drawing = io.BytesIO()
    # Without a date and random names, the same runs make the same page.
    with matplotlib.rc_context({"svg.hashsalt": "newllm"}):
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(drawing.getvalue()).decode()}"
