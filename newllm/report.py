"""The series beside its reproduction, and any runs side by side.

`python -m newllm.report [RUN ...]` prints a table of the runs, and writes `report.md` and one
self-contained `index.html`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from newllm.config.arguments import Arguments, ends_with_its_reader
from newllm.config.loading import loading
from newllm.reporting.translation import LANGUAGES


@ends_with_its_reader
def main() -> None:
    """The command line."""
    parser = Arguments(
        prog="python -m newllm.report",
        description="Compare runs with each other, and the published series with its reproduction.",
    )
    parser.add_runs("outputs/runs", "run directories, folders that contain some, or packed runs")
    parser.add_argument("--output", type=Path, default=Path("outputs/report"), help="folder")
    help = (
        "write the page as this Markdown file instead, with its figures in a folder of the "
        "same name"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE.md", help=help)
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="language of the page")
    help = "the group to compare the others with, by label, experiment or name"
    parser.add_argument("--baseline", metavar="NAME", help=help)
    parser.add_argument("--figure", type=Path, help="draw the curves of these runs in one figure")
    parser.add_argument("--pack", type=Path, help="write the data of the page to FILE.json.gz")
    options = parser.parse_args()
    endings = {"figure": (".png", ".svg", ".pdf"), "markdown": (".md",), "pack": (".json.gz",)}
    faults = [
        f"--{name} {path}: must end in {' or '.join(allowed)}"
        for name, allowed in endings.items()
        if (path := getattr(options, name)) and not path.name.endswith(allowed)
    ]
    if faults:
        sys.exit("\n".join(faults))
    with loading():
        from newllm.reporting.report import report
        from newllm.studies import found_studies
    try:
        report(options, found_studies())
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
