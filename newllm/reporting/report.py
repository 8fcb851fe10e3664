"""The whole report: files first, then the tables in the terminal."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from newllm.reporting.page import Page, Study
from newllm.reporting.tensorboard import write_bands
from newllm.reporting.terminal import console, print_contests, reasons
from newllm.reporting.translation import translator
from newllm.reporting.variant_figures import curves, has_curves
from newllm.runs.gathering import gather, pack


def report(options: Namespace, studies: Sequence[Study]) -> None:
    """Write and print all that the options of `newllm.report` ask for.

    Raises:
        ValueError: the runs cannot be read or compared, or a file cannot be written.
    """
    page = Page(gather(options.runs), studies, options.baseline, options.lang)
    drawn = [contest for contest in page.contests if has_curves(contest)]
    if options.figure and not drawn:
        raise ValueError(f"--figure {options.figure}: none of these runs has a curve")
    picture = curves(drawn) if options.figure else None
    document = page.compose()
    lines = []
    try:
        if picture:
            options.figure.parent.mkdir(parents=True, exist_ok=True)
            picture.savefig(options.figure, dpi=120)
            lines.append(f"curves: {options.figure}")
        if options.pack:
            pack(page.runs, options.pack)
            lines.append(f"packed: {options.pack}")
        for folder in options.runs:
            if folder.is_dir() and not (folder / "result.json").is_file():
                own = [run for run in page.runs if Path(run.place).is_relative_to(folder)]
                lines += write_bands(own, folder)
        written = (
            document.write_markdown(options.markdown)
            if options.markdown
            else document.write(options.output)
        )
    except OSError as error:
        raise ValueError(f"cannot be written: {error}") from error
    lines += [*page.changed(translator("en")), f"page: {written}"]
    if opening := page.opening:
        lines.append(
            f"this page shows sweep={opening.name}; use --baseline NAME for a page of groups"
        )
    print_contests(page.contests, console())
    print("\n".join([*reasons(page.contests), *lines]))
