"""Memory and latency by length: the cached decoder, slopes and crossings, and the command."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command

from newllm.benchmarks import memory
from newllm.benchmarks.decoders import CONTEXT, MODELS, TRANSFORMER, CachedDecoder, build, decoder
from newllm.benchmarks.memory import INFERENCE, TRAINING, Lengths, Point, measure_memory
from newllm.benchmarks.memory_report import Curve, Findings, Slope, crossing
from newllm.models.sizes import num_parameters


def test_the_cache_gives_the_logits_of_the_model() -> None:
    model = build(TRANSFORMER, 40_000).eval()
    tokens_BT = torch.randint(4, 1000, (2, 12), generator=torch.Generator().manual_seed(1))
    cached = CachedDecoder(model, 2, 12)
    with torch.inference_mode():
        expected_BTV = model(tokens_BT)[0]
        for t in range(12):
            found_BV = cached.step(tokens_BT[:, t], t)
            torch.testing.assert_close(found_BV, expected_BTV[:, t], rtol=1e-4, atol=1e-5)
    assert cached.caches.nbytes == 2 * 12 * (model.state_bytes(1) - 1)


@pytest.mark.parametrize("name", MODELS)
def test_models_have_a_million_parameters(name: str) -> None:
    with torch.device("meta"):
        assert num_parameters(build(name)) == pytest.approx(1e6, rel=0.06)


def test_a_decoder_reads_as_many_tokens_as_it_is_told() -> None:
    """In chunks or one by one: the state is the same."""
    one, other = (decoder(CONTEXT, 2, 0, 20_000) for _ in range(2))
    one.read(memory.CHUNK + 3)
    other.read(memory.CHUNK)
    for position in range(3):
        other.step(memory.CHUNK + position)
    for found, expected in zip(one._state, other._state, strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def points(what: str, model: str, megabytes: Callable[[int], float]) -> list[Point]:
    return [Point(what, model, n, megabytes(n), n, n / 100) for n in (256, 512, 1024, 2048, 4096)]


def test_slopes_and_verdicts() -> None:
    lines: dict[str, Callable[[int], float]] = {
        "flat": lambda n: 2.0, "linear": lambda n: n / 100, "root": lambda n: n**0.5,
    }  # fmt: skip
    for name, line in lines.items():
        curve = Curve(points(INFERENCE, name, line), INFERENCE, name, 0)
        slope = curve.slope(curve.megabytes)
        expected = {"flat": 0.0, "linear": 1.0, "root": 0.5}[name]
        assert slope.value == pytest.approx(expected, abs=1e-9)
        assert slope.verdict == ("constant" if name == "flat" else "grows")
    assert Slope(0.04, 0.03).verdict == "undecided"


@pytest.mark.parametrize(
    ("rising", "expected"),
    [
        ([1.0, 2.0, 4.0, 8.0], 2 ** (1 + np.log2(3))),  # meets 3 between 2 and 4
        ([4.0, 4.0, 4.0, 8.0], 2.0),
        ([4.0, 1.0, 1.0, 9.0], 8 * 2**0.5),  # only the last crossing counts
        ([1.0, 1.0, 1.0, 2.0], None),
    ],
)
def test_where_a_curve_crosses_another(rising: Sequence[float], expected: float | None) -> None:
    lengths = np.array([2.0, 4.0, 8.0, 16.0])
    found = crossing(lengths, np.array(rising), np.full(4, 3.0))
    assert found == (expected if expected is None else pytest.approx(expected))


def test_what_is_equal_within_the_noise_of_a_measurement_does_not_cross() -> None:
    lengths = (256, 512, 1024, 2048)
    memory_of = {CONTEXT: (10, 10, 10, 10), TRANSFORMER: (10.1, 10.2, 10.3, 20)}
    found = [
        Point(INFERENCE, model, length, megabytes, 0, 1.0)
        for model, rising in memory_of.items()
        for length, megabytes in zip(lengths, rising, strict=True)
    ]
    content = {"points": [asdict(point) for point in found], "parameters": 0}
    crossings = Findings(content | {"tokens_per_second": {}}).crossings
    assert crossings["memory"] is not None
    assert 1024 < crossings["memory"] < 2048
    assert crossings["time"] is None


def test_all_is_measured_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(measure: Callable[..., Any], *arguments: Any, environment: Any = None) -> Any:
        return measure(*arguments)

    monkeypatch.setattr(memory, "_in_a_process", here)
    monkeypatch.setattr(memory, "TIMED_TOKENS", 3)
    lengths = Lengths((64, 128, 256), (64, 128, 256), (1, 2), 20_000)
    measure_memory(lengths, tmp_path / "memory.json")
    found = json.loads((tmp_path / "memory.json").read_text())
    assert len(found["points"]) == 3 * (len(MODELS) + len(TRAINING))
    assert "256 tokens" in capsys.readouterr().out
    findings = Findings(found)
    text = findings.markdown("a machine")
    assert all(name in text for name in (*MODELS, *TRAINING))
    assert "64 → 256" in text
    findings.picture().savefig(tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 10_000


@pytest.mark.long
def test_the_command_measures_in_processes(command: Command, tmp_path: Path) -> None:
    done = command("newllm.benchmark", "--memory", "--quick", "--output", "found")
    assert done.returncode == 0, done.stderr
    assert {file.name for file in (tmp_path / "found").iterdir()} == {
        "memory.json", "memory.md", "memory.png",
    }  # fmt: skip


def test_settings_of_speed_are_none_of_memory(command: Command) -> None:
    done = command("newllm.benchmark", "--memory", "--threads", "2")
    assert (done.returncode, done.stderr) == (
        1, "--memory: takes neither --threads nor --compare\n",
    )  # fmt: skip


def test_a_process_has_an_environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the allocator of glibc would decide what is measured."""
    monkeypatch.delenv("MALLOC_TOP_PAD_", raising=False)
    found = memory._in_a_process(os.getenv, "MALLOC_TOP_PAD_", environment=memory.EXACT)
    assert found == "0"
    assert "MALLOC_TOP_PAD_" not in os.environ
