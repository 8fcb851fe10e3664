"""Timing in turns, and the benchmark as a command (its figures are never asserted)."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Command

from newllm.benchmarks.peak import peak_bytes
from newllm.benchmarks.timing import Timing, changes, read_timings, side_by_side, write_timings


def test_contestants_take_turns() -> None:
    order: list[str] = []
    timings = side_by_side(
        {name: lambda name=name: order.append(name) for name in "abc"},  # type: ignore[misc]
        num_rounds=3,
        num_warmup=1,
    )
    assert order == list("abc" * 4)
    assert timings["a"].ratio == 1


def test_ratio_says_how_many_times_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]  # a clock that only the contestants move

    def wait(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr("newllm.benchmarks.timing.time.perf_counter", lambda: now[0])
    timings = side_by_side({"slow": lambda: wait(3.0), "fast": lambda: wait(1.5)}, num_rounds=3)
    assert timings == {"slow": Timing(3.0, 1.0, 0.0), "fast": Timing(1.5, 2.0, 0.0)}


def test_rows_survive_a_file_and_are_compared(tmp_path: Path) -> None:
    rows = {"step": Timing(0.5, 2.0, 0.1), "epoch": Timing(3.0, 1.0, 0.0)}
    write_timings(tmp_path / "benchmark.json", rows)
    assert read_timings(tmp_path / "benchmark.json") == rows
    newer = {"step": Timing(0.25, 2.0, 0.1), "other": Timing(1.0, 1.0, 0.0)}
    assert changes(rows, newer) == {"step": 2.0}
    (tmp_path / "broken.json").write_text("[1]")
    faults = {"broken.json": "is not a benchmark.json", "missing.json": "No such file or directory"}
    for name, fault in faults.items():
        with pytest.raises(ValueError, match=f"{name}: {fault}$"):
            read_timings(tmp_path / name)


def test_memory_at_its_peak() -> None:
    def hold_100_megabytes() -> None:
        block = bytearray(100_000_000)
        block[:: resource.getpagesize()] = b"x" * len(block[:: resource.getpagesize()])

    assert 80e6 < peak_bytes(hold_100_megabytes) < 200e6
    assert peak_bytes(lambda: None) < 50e6


def test_the_quick_benchmark_writes_its_files(command: Command, tmp_path: Path) -> None:
    done = command("newllm.benchmark", "--quick", "--threads", "1", "--output", "first")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "first" / "benchmark.json").read_text())
    assert all({"seconds", "ratio", "spread"} <= set(row) for row in rows.values())
    kinds = {name.partition(" ")[0] for name in rows}
    assert kinds == {"step", "epoch", "roofline", "long", "memory", "parallel", "generation"}
    measured = {name.partition(" ")[0] for name, row in rows.items() if "megabytes" in row}
    assert measured == {"memory"}
    assert "--device cuda" in (tmp_path / "first" / "benchmark.md").read_text()
    assert (tmp_path / "first" / "benchmark.png").stat().st_size > 0
    done = command("newllm.benchmark", "--threads", "0", fresh=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    done = command("newllm.benchmark", "--compare", "nowhere.json")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_help_comes_before_torch() -> None:
    program = "import newllm.benchmark, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
