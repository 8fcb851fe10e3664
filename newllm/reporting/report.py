"""The whole report: files first, then the tables in the terminal."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from newllm.reporting.bands import bands_told
from newllm.reporting.page import Page, Study
from newllm.reporting.terminal import console, print_contests, reasons
from newllm.reporting.translation import translator
from newllm.reporting.variant_figures import curves, has_curves
from newllm.runs.gathering import gather, pack
from newllm.statistics.comparisons import Contest, contests


def report(options: Namespace, studies: Sequence[Study]) -> None:
    """Write and print everything that was asked for.

    Args:
        options: of the command line of `newllm.report`.
        studies: those that may have a part in the page.

    Raises:
        ValueError: the runs cannot be read or compared, or a file cannot be written.
    """
    runs = gather(options.runs)
    found = contests(runs, options.baseline)
    page = Page(runs, studies, options.baseline, options.lang, found)
    # Files first: whoever reads the tables may stop reading them.
    try:
        written = _write(page, found, options)
    except OSError as error:
        raise ValueError(f"cannot be written: {error}") from error
    out = console()
    print_contests(found, out)
    print("\n".join([*reasons(found), *written]))


def _write(page: Page, found: Sequence[Contest], options: Namespace) -> list[str]:
    """Everything that was asked for; returns a line for each."""
    lines = []
    if options.figure:
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        drawn = [contest for contest in found if has_curves(contest)]
        if not drawn:
            raise ValueError(f"--figure {options.figure}: none of these runs has a curve")
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
        lines.append(
            f"this page shows sweep={opening.name}; use --baseline NAME for a page of groups"
        )
    return lines
