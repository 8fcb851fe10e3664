"""The series beside its reproduction, and any runs side by side.

`python -m newllm.report [RUN ...]` prints a table of the runs, and writes `report.md` and one
self-contained `index.html`.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from newllm.config.arguments import Arguments, ends_with_its_reader
from newllm.reporting.bands import bands_told
from newllm.reporting.page import Page
from newllm.reporting.terminal import console, print_contests, reasons
from newllm.reporting.translation import LANGUAGES, translator
from newllm.reporting.variant_figures import curves, has_curves
from newllm.runs.gathering import gather, pack
from newllm.statistics.comparisons import Contest, contests
from newllm.studies import found_studies


@ends_with_its_reader
def main() -> None:
    """The command line."""
    parser = Arguments(
        prog="python -m newllm.report",
        description="Set runs side by side, and the published series beside its reproduction.",
    )
    parser.add_runs("outputs/runs", "run directories, folders of them, or packed runs")
    parser.add_argument("--output", type=Path, default=Path("outputs/report"), help="folder")
    help = "write the page as this file of Markdown instead, figures in a folder named like it"
    parser.add_argument("--markdown", type=Path, metavar="FILE.md", help=help)
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="language of the page")
    help = "the group of runs that others are compared with, by its label, experiment or name"
    parser.add_argument("--baseline", metavar="NAME", help=help)
    parser.add_argument("--figure", type=Path, help="draw the curves of these runs in one picture")
    parser.add_argument("--pack", type=Path, help="write what the page needs into FILE.json.gz")
    options = parser.parse_args()
    if options.figure and options.figure.suffix not in (".png", ".svg", ".pdf"):
        sys.exit(f"--figure {options.figure}: must end in .png, .svg or .pdf")
    if options.markdown and options.markdown.suffix != ".md":
        sys.exit(f"--markdown {options.markdown}: must end in .md")
    if options.pack and not options.pack.name.endswith(".json.gz"):
        sys.exit(f"--pack {options.pack}: must end in .json.gz")
    try:
        runs = gather(options.runs)
        found = contests(runs, options.baseline)
        page = Page(runs, found_studies(), options.baseline, options.lang, found)
    except ValueError as error:
        sys.exit(str(error))
    # Files first: whoever reads the tables may stop reading them.
    try:
        written = _write(page, found, options)
    except OSError as error:
        sys.exit(f"cannot be written: {error}")
    out = console()
    print_contests(found, out)
    for line in reasons(found):
        out.print(line)
    print("\n".join(written))


def _write(page: Page, found: Sequence[Contest], options: Namespace) -> list[str]:
    """Everything that was asked for; returns a line for each."""
    lines = []
    if options.figure:
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        drawn = [contest for contest in found if has_curves(contest)]
        if not drawn:
            sys.exit(f"--figure {options.figure}: none of these runs has a curve")
        curves(drawn).savefig(options.figure, dpi=120)
        lines.append(f"curves: {options.figure}")
    if options.pack:
        pack(page.runs, options.pack)
        lines.append(f"packed: {options.pack}")
    for folder in options.runs:
        if folder.is_dir() and not (folder / "result.json").is_file():
            own = [run for run in page.runs if Path(run.place).is_relative_to(folder)]
            lines += bands_told(own, folder)
    written = (
        page.write_markdown(options.markdown) if options.markdown else page.write(options.output)
    )
    lines += [*page.changed(translator("en")), f"page: {written}"]
    if opening := page.opening:
        lines.append(f"it is a page of sweep={opening.name}; --baseline NAME makes one of groups")
    return lines


if __name__ == "__main__":
    main()
