"""Measure speed and memory: `python -m newllm.benchmark [--quick] [--memory] [--compare OLD.json]`.

All contestants take turns in one process: the fused recurrence and the plain loop, an epoch as the
original trained it and as it is trained now, the context model and a Transformer and LSTMs of equal
size, a step and the machine's own rate of matrix products, long sequences with and without
recomputation, all tokens of a long sequence at once, and generation. Writes `benchmark.json` (a
flat map), `benchmark.md` and `benchmark.png`.

With --memory, memory and latency are measured by length instead: reading of up to 131,072 tokens by
models with a fixed state and by a Transformer with a cache, and training by length. Writes
`memory.json`, `memory.md` and `memory.png`.

With `--device cuda`, measures a GPU instead, within eight minutes: the recurrences, a Transformer
and an LSTM of equal size, the rates of products and of the memory, a long sequence, and the speed
of whole runs. Writes `device.json` and `device.md`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from newllm.config.arguments import Arguments, ends_with_its_reader


@ends_with_its_reader
def main() -> None:
    """The command line."""
    parser = Arguments(prog="python -m newllm.benchmark", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model only, about a minute")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--memory", action="store_true", help="memory and latency by length")
    instead.add_argument("--device", help="cuda, or cpu to try the same measurements there")
    parser.add_argument("--threads", help="such as 1,2 (default: 1 and all)")
    parser.add_argument("--compare", type=Path, help="an older benchmark.json to compare with")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="folder")
    options = parser.parse_args()
    if options.device is not None:
        if options.threads is not None or options.compare is not None:
            sys.exit("--device: takes neither --threads nor --compare")
        _measure_device(options.device, options.quick, options.output)
        return
    from newllm.benchmarks.timing import changes, read_timings

    if options.memory:
        if options.threads or options.compare:
            sys.exit("--memory: takes neither --threads nor --compare")
        _measure_memory(options.quick, options.output)
        return
    try:
        threads = _thread_counts(options.threads) if options.threads is not None else None
        old = read_timings(options.compare) if options.compare else {}
    except ValueError as error:
        sys.exit(str(error))
    _make(options.output)
    # Here, because torch takes seconds to import.
    from newllm.benchmarks.results import machine, markdown, picture
    from newllm.benchmarks.workloads import FULL, QUICK, measure

    measured_on = machine()
    print(measured_on)
    rows = measure(QUICK if options.quick else FULL, threads, options.output / "benchmark.json")
    picture(rows).savefig(options.output / "benchmark.png", dpi=120)
    (options.output / "benchmark.md").write_text(markdown(rows, measured_on))
    for name, ratio in changes(old, rows).items():
        print(f"{name}: {ratio:.2f} times faster than in {options.compare}")
    print(f"written to {options.output}")


def _measure_memory(is_quick: bool, output: Path) -> None:
    # Here, because torch takes seconds to import.
    from newllm.benchmarks.memory import QUICK, Lengths, measure_memory
    from newllm.benchmarks.memory_report import Findings
    from newllm.benchmarks.peak import can_measure
    from newllm.benchmarks.results import machine

    if not can_measure():
        sys.exit("--memory: needs Linux, which tells the peak memory of a process")
    _make(output)
    measured_on = machine()
    print(measured_on)
    found = measure_memory(QUICK if is_quick else Lengths(), output / "memory.json")
    findings = Findings(found)
    findings.picture().savefig(output / "memory.png", dpi=120)
    (output / "memory.md").write_text(findings.markdown(measured_on))
    print(f"written to {output}")


def _measure_device(name: str, is_quick: bool, folder: Path) -> None:
    import torch

    from newllm.benchmarks.device import FULL_DEVICE, QUICK_DEVICE, Measurements
    from newllm.benchmarks.device_rows import device_markdown
    from newllm.benchmarks.results import machine

    if name not in ("cpu", "cuda"):
        sys.exit(f"--device {name}: must be cuda or cpu")
    if name == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch finds no GPU here")
    _make(folder)
    device = torch.device(name)
    measured_on = machine(device)
    print(measured_on)
    extent = QUICK_DEVICE if is_quick else FULL_DEVICE
    rows = Measurements(device, extent, folder / "device.json").take()
    (folder / "device.md").write_text(device_markdown(rows, measured_on))
    print(f"written to {folder}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"--output {folder}: cannot be made; {error.strerror}")


def _thread_counts(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise ValueError(f"--threads {text}: must be whole numbers above 0, such as 1,2")
    return counts


if __name__ == "__main__":
    main()
