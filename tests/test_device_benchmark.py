"""The benchmark of a GPU, run on a CPU by the same code (its figures are never asserted)."""

import json
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_CONTEXT, Command, faults_of
from preloaded import Program

from newllm.benchmarks import device as device_module
from newllm.benchmarks import training_runs
from newllm.benchmarks.device import FULL_DEVICE, QUICK_DEVICE, Measurements
from newllm.benchmarks.device_rows import Row, device_markdown
from newllm.benchmarks.training_runs import run_speed
from newllm.models.language_model import LanguageModel
from newllm.models.recurrence.reference import Reference
from newllm.models.sizes import num_parameters

CPU = torch.device("cpu")
NO_GPU = "recurrence=persistent: the kernel takes a GPU"


@pytest.fixture(autouse=True)
def without_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring Triton's interpreter would take long."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")


def test_the_command_writes_its_files(command: Command, tmp_path: Path) -> None:
    done = command("newllm.benchmark", "--device", "cpu", "--quick", "--output", "first")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "first" / "device.json").read_text())
    assert {name.partition(" ")[0].strip(":") for name in rows} == {"rate", "step", "long"}
    of_steps = [row for name, row in rows.items() if not name.startswith("rate")]
    assert len(of_steps) == 5 + 5
    assert [row["error"] for row in of_steps if row["error"]] == [NO_GPU]
    for row in of_steps:
        if row["error"]:
            continue
        assert min(row[key] for key in ("milliseconds", "tokens_per_second", "share")) > 0
    assert (tmp_path / "first" / "device.md").read_text().count("\n") == len(rows) + 4


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--device", "tpu"], "--device tpu: must be cuda or cpu"),
        (["--device", "cpu", "--threads", "1"], "--device: takes neither --threads nor --compare"),
    ],
)
def test_faults(command: Command, arguments: list[str], fault: str) -> None:
    done = command("newllm.benchmark", *arguments)
    assert (done.returncode, done.stderr.strip()) == (1, fault)


def test_what_fails_is_written_down_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> LanguageModel:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    monkeypatch.setattr(device_module, "_lstm", fail)
    extent = replace(QUICK_DEVICE, long=QUICK_DEVICE.steps[0])
    rows = Measurements(CPU, extent, tmp_path / "device.json").take()
    errors = {name.split()[-1]: row.error for name, row in rows.items() if row.error is not None}
    assert errors == {"lstm": "CUDA out of memory.", "persistent": NO_GPU}
    assert len(rows) == 3 + 5 + 5


@pytest.mark.parametrize("failing", ["plain loop", "fused"])
def test_ratios_are_those_to_the_first_row_or_none(tmp_path: Path, failing: str) -> None:
    def fail() -> LanguageModel:
        raise RuntimeError("no memory")

    (workload,) = QUICK_DEVICE.steps
    names = ("plain loop", "fused", "again")
    contestants = dict.fromkeys(names, partial(workload.size.build, Reference()))
    measurements = Measurements(CPU, QUICK_DEVICE, tmp_path / "device.json")
    measurements.product_tflops[workload.precision] = 1.0
    ((_, rows),) = measurements._race("step", workload, {**contestants, failing: fail})
    assert rows[failing] == Row(error="no memory")
    has_ratio = {name: row.ratio is not None for name, row in rows.items() if name != failing}
    assert set(has_ratio.values()) == {failing != "plain loop"}


def test_nothing_is_begun_after_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "LIMIT", -1.0)
    extent = replace(QUICK_DEVICE, training=("model.num_layers=2",))
    rows = Measurements(CPU, extent, tmp_path / "device.json").take()
    begun = {name for name, row in rows.items() if row.error != "no time left"}
    assert all(name.startswith("rate") for name in begun)
    assert len(rows) == 3 + 5 + 5 + 2


def test_a_run_tells_its_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forked(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return Program(tmp_path, command[2], *command[3:]).wait()

    monkeypatch.setattr(training_runs.subprocess, "run", forked)
    run = (*TINY_CONTEXT, "data=tiny30")
    row = run_speed([*run, "trainer.max_epochs=3"], CPU, 60)
    assert row.error is None
    assert row.tokens_per_second is not None
    assert row.tokens_per_second > 0
    assert row.share is None  # a CPU has no data sheet here
    assert run_speed([*run, "trainer.max_epochs=1"], CPU, 60) == Row(
        error="too few steps to tell the speed"
    )
    failed = run_speed(["model.num_layers=0"], CPU, 60).error
    assert failed is not None
    assert "num_layers" in failed


def test_a_run_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(training_runs.subprocess, "run", late)
    assert run_speed([], CPU, 3) == Row(error="took longer than 3 s")


@pytest.mark.parametrize("model", ["gated", "transformer"])
def test_the_runs_of_a_gpu_are_possible(model: str) -> None:
    assert faults_of([f"model={model}", *FULL_DEVICE.training]) == []


def test_models_of_equal_size() -> None:
    number = 4_100_000
    for build in (device_module._transformer, device_module._lstm):
        assert num_parameters(build(number)) == pytest.approx(number, rel=0.15)


def test_a_row_in_words_and_in_a_table() -> None:
    row = Row(milliseconds=1234.5, ratio=2.0, tflops=0.01234)
    assert str(row) == "milliseconds 1,234, ratio 2, tflops 0.0123"
    table = device_markdown({"a": row, "b": Row(error="no compiler")}, "a machine")
    assert "| a | 1,234 | 2 |  | 0.0123 |  |  |" in table
    assert "| b | no compiler |" in table
