"""How fast is it, and against what: `python -m newllm.benchmark [--quick] [--compare OLD.json]`.

Everything is timed side by side in one process, in turns: the fused recurrence against the plain
loop, an epoch against the original's way, the context model against a Transformer and LSTMs of
equal size, a step against the machine's own matrix rate, and long sequences with and without
recomputation. Writes `benchmark.json` (a flat map), `benchmark.md` and `benchmark.png`.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import newllm
from newllm.benchmarks.figure import speed
from newllm.benchmarks.timing import Timing, changes, read_timings, write_timings
from newllm.benchmarks.workloads import FULL, MEASUREMENTS, QUICK, Extent
from newllm.config.arguments import Arguments, ends_with_its_reader


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> str:
    """What this was measured on, in one line."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    return (
        f"{processor}, {torch.get_num_threads()} threads at most, Python "
        f"{platform.python_version()}, torch {torch.__version__}, newllm {newllm.__version__}"
    )


def run(
    extent: Extent, thread_counts: list[int], console: Console, file: Path
) -> dict[str, Timing]:
    """All measurements at each number of threads; prints and writes rows as they come."""
    rows: dict[str, Timing] = {}
    for count in thread_counts:
        with threads(count):
            for measure in MEASUREMENTS:
                for prefix, timings in measure(extent):
                    for name, timing in timings.items():
                        row = f"{prefix}: {name} ({count} thread{'s' * (count > 1)})"
                        rows[row] = timing
                        console.print(f"{row}: {format_timing(timing)}")
                    write_timings(file, rows)
    return rows


def format_timing(timing: Timing) -> str:
    """Milliseconds, ratio and spread for a person."""
    if timing.megabytes is not None:
        return f"{timing.megabytes:.0f} MB, {timing.ratio:.2f}x less"
    spread = f"+-{100 * timing.spread:.0f} %"
    return f"{1000 * timing.seconds:.2f} ms {spread}, {timing.ratio:.2f}x"


@ends_with_its_reader
def main() -> None:
    """The command line."""
    parser = Arguments(prog="python -m newllm.benchmark", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model only, about a minute")
    parser.add_argument("--threads", default=None, help="such as 1,2 (default: 1 and all)")
    parser.add_argument("--compare", type=Path, help="an older benchmark.json to compare with")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="folder")
    options = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    try:
        counts = thread_counts(options.threads)
        old = read_timings(options.compare) if options.compare else {}
    except ValueError as error:
        sys.exit(str(error))
    console.print(machine())
    options.output.mkdir(parents=True, exist_ok=True)
    extent = QUICK if options.quick else FULL
    rows = run(extent, counts, console, options.output / "benchmark.json")
    speed(rows).savefig(options.output / "benchmark.png", dpi=120)
    (options.output / "benchmark.md").write_text(markdown(rows))
    if old:
        console.print(change_table(old, rows))
    console.print(f"written to {options.output}")


def thread_counts(text: str | None) -> list[int]:
    """The numbers of threads to measure at."""
    if text is None:
        return sorted({1, torch.get_num_threads()})
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ValueError(f"--threads {text}: must be whole numbers above 0, such as 1,2")
    return counts


def markdown(rows: dict[str, Timing]) -> str:
    """The rows as a document."""
    lines = [f"Measured on {machine()}.", "", "| row | ms | spread | ratio | MB |"]
    lines.append("|---|---:|---:|---:|---:|")
    lines += [
        f"| {name} | {1000 * row.seconds:.2f} | {100 * row.spread:.0f} % | {row.ratio:.2f} | "
        f"{'' if row.megabytes is None else format(row.megabytes, '.0f')} |"
        for name, row in rows.items()
    ]
    lines += ["", "On a GPU: not measured.", ""]
    return "\n".join(lines)


def change_table(old: dict[str, Timing], new: dict[str, Timing]) -> Table:
    """What changed since an older benchmark."""
    table = Table("row", "times faster", title="compared with the older benchmark", box=None)
    for name, ratio in changes(old, new):
        table.add_row(name, f"{ratio:.2f}")
    return table


if __name__ == "__main__":
    main()
