"""The series beside its reproduction, and any runs side by side.

`python -m newllm.report [RUN ...]` prints a table of the runs, and writes `report.md` and one
self-contained `index.html`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from newllm.analysis import figures
from newllm.analysis.bands import write_bands
from newllm.analysis.gathering import Run, gather, pack
from newllm.arguments import Arguments
from newllm.reporting.language import LANGUAGES
from newllm.reporting.page import write_markdown, write_report

MANY = 12  # runs; more of them are for the page, not for the terminal


def comparison_table(runs: Sequence[Run]) -> Table:
    """One row a run; losses are means over tokens, in nats."""
    table = Table(box=None)
    headings = ("run", "data", "parameters", "best val loss", "epoch", "above oracle", "bigram",
                "test loss", "accuracy", "seconds", "status", "reason")  # fmt: skip
    for heading in headings:
        table.add_column(
            heading, justify="left" if heading in ("run", "data", "status", "reason") else "right"
        )
    for run in runs:
        result = run.result
        best, oracle = result.get("best_val_loss"), result.get("oracle_loss")
        gap = None if best is None or oracle is None else best - oracle
        leaks = ", sees the future" if result.get("sees_the_future") else ""
        accuracy = result.get("val_accuracy")
        table.add_row(
            result.get("name") or run.place,
            result.get("corpus", "-"),
            f"{result['parameters']:,}" if "parameters" in result else "-",
            _number(best),
            str(result.get("best_epoch") or "-"),
            _number(gap),
            _number(result.get("references", {}).get("bigram")),
            _number(result.get("test_loss")),
            "-" if accuracy is None else f"{100 * accuracy:.1f} %",
            _number(result.get("seconds"), digits=0),
            result["status"] + leaks,
            (result.get("error") or "").partition("\n")[0],
        )
    return table


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main() -> None:
    """The command line."""
    parser = Arguments(
        prog="python -m newllm.report",
        description="Set runs side by side, and the published series beside its reproduction.",
    )
    default = Path("outputs/runs")
    help = f"run directories, folders of them, or packed runs ({default})"
    parser.add_argument("runs", nargs="*", type=Path, default=[default], help=help)
    parser.add_argument("--output", type=Path, default=Path("outputs/report"), help="folder")
    help = "write the page as this file of Markdown instead, figures in a folder named like it"
    parser.add_argument("--markdown", type=Path, metavar="FILE.md", help=help)
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="language of the page")
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
    except ValueError as error:
        sys.exit(str(error))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 250  # a file or a pipe has no edge to break lines at
    if len(runs) <= MANY:
        console.print(comparison_table(runs))
    if options.figure:
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        figures.comparison(runs).savefig(options.figure, dpi=120)
        print(f"curves: {options.figure}")
    if options.pack:
        pack(runs, options.pack)
        print(f"packed: {options.pack}")
    for folder in options.runs:
        if folder.is_dir() and not (folder / "result.json").is_file():
            write_bands([run for run in runs if Path(run.place).is_relative_to(folder)], folder)
    if options.markdown:
        page = write_markdown(runs, options.markdown, options.lang)
    else:
        page = write_report(runs, options.output, options.lang)
    print(f"page: {page}")


if __name__ == "__main__":
    main()
