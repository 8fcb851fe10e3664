"""Runs side by side: `python -m newllm.report RUN [RUN ...]` prints a table, draws the curves."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from newllm.analysis import figures
from newllm.runs import read_result


def read_run(path: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """A run's result and its rows by epoch, which may be none.

    Raises:
        ValueError: if the folder holds no run.
    """
    result = read_result(path)
    metrics = path / "metrics.csv"
    if not metrics.is_file():
        return result, []
    with metrics.open(newline="") as table:
        rows = [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(table)
        ]
    return result, rows


def comparison_table(results: list[dict[str, Any]]) -> Table:
    """One row a run; losses are means over tokens, in nats."""
    table = Table(box=None)
    headings = ("run", "data", "parameters", "best val loss", "epoch", "above oracle", "bigram",
                "test loss", "accuracy", "seconds", "status")  # fmt: skip
    for heading in headings:
        table.add_column(
            heading, justify="left" if heading in ("run", "data", "status") else "right"
        )
    for result in results:
        best, oracle = result["best_val_loss"], result["oracle_loss"]
        gap = None if best is None or oracle is None else best - oracle
        status = result["status"] + (", sees the future" if result["sees_the_future"] else "")
        accuracy = result["val_accuracy"]
        table.add_row(
            result["name"],
            result["corpus"],
            f"{result['parameters']:,}",
            _number(best),
            str(result["best_epoch"] or "-"),
            _number(gap),
            _number(result["references"]["bigram"]),
            _number(result["test_loss"]),
            "-" if accuracy is None else f"{100 * accuracy:.1f} %",
            _number(result["seconds"], digits=0),
            status,
        )
    return table


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m newllm.report", description="Compare runs: a table and a picture."
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--figure", type=Path, help="where to draw the curves, as .png or .svg")
    options = parser.parse_args()
    if options.figure and options.figure.suffix not in (".png", ".svg", ".pdf"):
        sys.exit(f"--figure {options.figure}: must end in .png, .svg or .pdf")
    try:
        runs = [read_run(path) for path in options.runs]
    except ValueError as error:
        sys.exit(str(error))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 250  # a file or a pipe has no edge to break lines at
    console.print(comparison_table([result for result, _ in runs]))
    if options.figure:
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        figures.comparison(runs).savefig(options.figure, dpi=120)
        print(f"curves: {options.figure}")


if __name__ == "__main__":
    main()
