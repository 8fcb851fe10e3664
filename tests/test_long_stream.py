"""One stream of a million bytes: the memory of a window, and three kills that change nothing."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from preloaded import Program

from newllm.data.sources.standard_library import library_files

NUM_BYTES = 1_000_000
WINDOW = 256
LONGEST_WAIT = 600.0  # seconds
SETTINGS = (
    *("data=text", "data.unit=document"),
    *("data.validation_path=validation", "data.test_path=validation"),
    *("data.feed=stream", f"data.tbptt_steps={WINDOW}", "data.batch_size=1", "data.directory=null"),
    *("model.embedding_dim=32", "model.context_dim=64", "model.hidden_dim=64", "threads=1"),
    *("model.num_layers=2", "recipe=task", "recipe.max_epochs=1", "countermeasure=none"),
    *("logger=none", "callbacks=none", "test=false", "checkpoint_steps=100"),
)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Source code of the standard library as one document of a million bytes, and a tenth of it."""
    text = b"".join(file.read_bytes() for file in library_files().values())
    readable = text.decode(errors="ignore").encode("ascii", errors="ignore")
    for name, size in {"long": NUM_BYTES, "short": NUM_BYTES // 10}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.txt").write_bytes(readable[:size])
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "end.txt").write_bytes(readable[-2000:])
    return tmp_path


def start(folder: Path, name: str, run: str) -> Program:
    return Program(
        folder, "newllm.train", *SETTINGS, f"data.path={name}", f"hydra.run.dir={folder / run}"
    )


def peak_megabytes(program: Program) -> float:
    """The most memory that a program took until just before its end."""
    peak = 0.0
    status = Path("/proc") / str(program.pid) / "status"
    while program.is_alive:
        if found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text()):
            peak = int(found[1]) / 1000
        time.sleep(0.2)
    return peak


def kill_after(program: Program, folder: Path, num_steps: int) -> None:
    """Kill a run when its checkpoint has made so many steps."""
    last, deadline = folder / "checkpoints" / "last.ckpt", time.monotonic() + LONGEST_WAIT
    while not last.is_file() or steps_of(last) < num_steps:
        assert program.is_alive
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(program.pid, signal.SIGKILL)
    assert program.wait(60).returncode == -signal.SIGKILL


def steps_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=False)["global_step"])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "best.ckpt")["model"]
    return found


@pytest.mark.long
def test_a_million_bytes_take_the_memory_of_a_window_and_three_kills(documents: Path) -> None:
    short = start(documents, "short", "short_run")
    peak = peak_megabytes(short)
    assert short.wait(60).returncode == 0
    whole = start(documents, "long", "whole_run")
    assert peak_megabytes(whole) < peak + 50  # the tokens themselves take 8 MB, and once more
    assert whole.wait(60).returncode == 0
    killed = documents / "killed_run"
    program = start(documents, "long", killed.name)
    for num_steps in (700, 2000, 3500):
        kill_after(program, killed, num_steps)
        program = Program(documents, "newllm.train", f"run={killed}")
    assert program.wait(LONGEST_WAIT).returncode == 0
    found, expected = weights_of(killed), weights_of(documents / "whole_run")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
