"""The speed of whole training runs, each a command as a user would give it."""

from __future__ import annotations

import csv
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from newllm.benchmarks.device_rows import Row

TOKENS, MFU = "speed/tokens_per_second", "speed/mfu"


def run_speed(overrides: Sequence[str], device: torch.device, seconds: float) -> Row:
    """Tokens per second and model FLOPs utilization of a run in bf16-mixed.

    Args:
        overrides: of the run.
        device: to train on.
        seconds: that it may take.
    """
    with tempfile.TemporaryDirectory() as folder:
        accelerator = "gpu" if device.type == "cuda" else "cpu"
        watching = ("steps", "samples", "context", "curves")
        command = [
            *(sys.executable, "-m", "newllm.train", *overrides),
            *(f"trainer.accelerator={accelerator}", "trainer.precision=bf16-mixed"),
            *("countermeasure=none", "logger=csv", "test=false", "checkpoint_steps=1000000"),
            *(f"callbacks.{name}=null" for name in watching),
            f"hydra.run.dir={folder}/run",
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return Row(error=f"took longer than {seconds:.0f} s")
        if done.returncode:
            return Row(error=(done.stderr.strip().splitlines() or ["failed"])[-1])
        return _logged_speed(Path(folder))


def _logged_speed(folder: Path) -> Row:
    """The median of the speeds in the logs but the first, of the steps that compile and capture."""
    logged: dict[str, list[float]] = {TOKENS: [], MFU: []}
    for file in folder.rglob("*.csv"):
        with file.open(newline="") as opened:
            for row in csv.DictReader(opened):
                for name, values in logged.items():
                    if row.get(name):
                        values.append(float(row[name]))
    found = {name: statistics.median(values[1:]) for name, values in logged.items() if values[1:]}
    if not found:
        return Row(error="too few steps to tell the speed")
    return Row(tokens_per_second=found[TOKENS], share=found.get(MFU))
