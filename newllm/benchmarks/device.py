"""What the benchmark measures on a GPU; the same code runs on a CPU, to try it.

Every measurement is written as soon as it is taken, and none is begun after `LIMIT` seconds. What
fails, for lack of memory or of a compiler, is written down with its reason.

Shapes: B batch, T time (tokens).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from newllm.benchmarks.device_rows import Row
from newllm.benchmarks.timing import Timing, seconds_on_host, side_by_side
from newllm.benchmarks.training_runs import run_speed
from newllm.benchmarks.workloads import EXP1, EXP2, MODERN, VOCABULARY, Size, Trainee
from newllm.models.attention import Attention
from newllm.models.language_model import LanguageModel
from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.parallel import Parallel
from newllm.models.recurrence.persistent import Persistent
from newllm.models.recurrence.reference import Reference
from newllm.models.sizes import nearest_width, num_parameters
from newllm.models.torch_rnn import LSTM

STEP = 32  # of widths, and the width of an attention head
LIMIT = 450.0  # seconds, after which nothing more is begun
Build = Callable[[], LanguageModel]


@dataclass(frozen=True)
class Workload:
    """Training steps of a size, and how they are computed; `precision` is that of products."""

    size: Size
    batch_size: int
    length: int
    precision: torch.dtype

    def __str__(self) -> str:
        precision = "bf16" if self.precision == torch.bfloat16 else "fp32"
        return f"{self.size} B{self.batch_size} T{self.length} {precision}"


@dataclass(frozen=True)
class DeviceExtent:
    """How much to measure.

    Attributes:
        steps: training steps of all models.
        long: steps of one long row.
        num_rounds: timed calls of each.
        edge: of the square matrices whose product gives the rate of products.
        num_copied: bytes of the copy that gives the bandwidth of the memory.
        compiles: whether `torch.compile` is measured, which takes a minute.
        training: overrides of the runs that are trained; no runs if there are none.
    """

    steps: tuple[Workload, ...]
    long: Workload
    num_rounds: int
    edge: int
    num_copied: int
    compiles: bool
    training: tuple[str, ...]


FULL_DEVICE = DeviceExtent(
    steps=(
        Workload(EXP2, 256, 64, torch.bfloat16),
        Workload(MODERN, 256, 64, torch.bfloat16),
        Workload(EXP1, 16, 31, torch.bfloat16),
        Workload(EXP1, 16, 31, torch.float32),
    ),
    long=Workload(EXP1, 1, 4096, torch.float32),
    num_rounds=7,
    edge=8192,
    num_copied=2**30,
    compiles=True,
    training=(
        *("scale=100m", "data=stdlib_source", "data.max_length=256", "data.batch_size=64"),
        *("data.validation_sentences=64", "trainer.max_steps=250"),
        "+trainer.val_check_interval=250",
    ),
)
QUICK_DEVICE = DeviceExtent(
    steps=(Workload(MODERN, 4, 9, torch.bfloat16),),
    long=Workload(MODERN, 1, 16, torch.float32),
    num_rounds=2,
    edge=128,
    num_copied=2**20,
    compiles=False,
    training=(),
)


class Measurements:
    """Takes the measurements on a device, and keeps them in a JSON file."""

    def __init__(self, device: torch.device, extent: DeviceExtent, file: Path) -> None:
        self.device, self.extent = device, extent
        self.rows: dict[str, Row] = {}
        self.product_tflops: dict[torch.dtype, float] = {}
        self._file = file
        self._started = time.monotonic()
        self._seconds_of = seconds_on_gpu if device.type == "cuda" else seconds_on_host

    @property
    def seconds_left(self) -> float:
        """Until nothing more is begun."""
        return LIMIT - (time.monotonic() - self._started)

    def take(self) -> dict[str, Row]:
        """Take all measurements."""
        for measure in (self._rates, self._steps, self._long, self._training):
            for group, rows in measure():
                self._keep(group, rows)
        return self.rows

    def _keep(self, group: str, rows: Mapping[str, Row]) -> None:
        for name, row in rows.items():
            self.rows[f"{group}: {name}"] = row
            print(f"{group}: {name}: {row}", flush=True)
        content = {name: asdict(row) for name, row in self.rows.items()}
        partial_file = self._file.with_suffix(".part")
        partial_file.write_text(json.dumps(content, indent=1) + "\n")
        partial_file.replace(self._file)

    def _rates(self) -> Iterator[tuple[str, dict[str, Row]]]:
        """The rate of large products, and the bandwidth of the memory."""
        edge, size = self.extent.edge, self.extent.num_copied
        for dtype in (torch.bfloat16, torch.float32):
            matrix = torch.randn(edge, edge, device=self.device).to(dtype)
            timing = self._time({"product": partial(torch.mm, matrix, matrix)})["product"]
            self.product_tflops[dtype] = 2e-12 * edge**3 / timing.seconds
            row = Row(1e3 * timing.seconds, timing.spread, tflops=self.product_tflops[dtype])
            yield "rate", {f"product of {edge} x {edge}, {str(dtype)[6:]}": row}
        source, target = (
            torch.zeros(size, dtype=torch.uint8, device=self.device) for _ in range(2)
        )
        timing = self._time({"copy": partial(target.copy_, source)})["copy"]
        bandwidth = 2e-12 * size / timing.seconds
        row = Row(1e3 * timing.seconds, timing.spread, terabytes_per_second=bandwidth)
        yield "rate", {f"copy of {size >> 20} MiB": row}

    def _time(self, contestants: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
        return side_by_side(contestants, self.extent.num_rounds, seconds_of=self._seconds_of)

    def _steps(self) -> Iterator[tuple[str, dict[str, Row]]]:
        """A training step by every recurrence, and of other models of equal size."""
        for workload in self.extent.steps:
            build = workload.size.build
            number = num_parameters(build(Reference()))
            contestants: dict[str, Build] = {
                "plain loop": partial(build, Reference()),
                "fused": partial(build, Fused()),
                "persistent": partial(build, Persistent(strict=True)),
                "transformer": partial(_transformer, number),
                "lstm": partial(_lstm, number),
            }
            if self.extent.compiles:
                contestants["plain loop of a compiled step"] = partial(_compiled, workload.size)
            yield from self._race(f"step {workload}", workload, contestants)

    def _long(self) -> Iterator[tuple[str, dict[str, Row]]]:
        """One long row by a cell that forgets, which `parallel` is for."""
        build = partial(self.extent.long.size.build, normalization=nn.Identity)
        contestants: dict[str, Build] = {
            "plain loop": partial(build, Reference()),
            "fused": partial(build, Fused()),
            "parallel": partial(build, Parallel()),
            "parallel, 8 iterations": partial(build, Parallel(8)),
            "parallel, by Newton's method": partial(build, Parallel(newton=True)),
        }
        yield from self._race(f"long {self.extent.long}", self.extent.long, contestants)

    def _race(
        self, group: str, workload: Workload, contestants: Mapping[str, Build]
    ) -> Iterator[tuple[str, dict[str, Row]]]:
        if self.seconds_left < 0:
            yield group, {name: Row(error="no time left") for name in contestants}
            return
        failed: dict[str, Row] = {}
        steps: dict[str, Callable[[], None]] = {}
        operations: dict[str, float] = {}
        megabytes: dict[str, float | None] = {}
        num_tokens = workload.batch_size * workload.length
        for name, build in contestants.items():
            try:
                model = build().to(self.device)
                step = Trainee(model, precision=workload.precision).step(
                    workload.batch_size, workload.length
                )
                step()  # compiles, captures, and makes the state of the optimizer
                megabytes[name] = self._peak_megabytes(step)
            except Exception as error:  # of many kinds; the others are still to be measured
                failed[name] = Row(error=_first_line(error))
                continue
            steps[name] = step
            # A token reads those before it in its row, half of the row on average.
            per_token = model.flops_per_token(max(1, workload.length // 2))
            operations[name] = 3.0 * per_token * num_tokens
        rows = dict(failed)
        baseline = next(iter(contestants))
        for name, timing in (self._time(steps) if steps else {}).items():
            tflops = 1e-12 * operations[name] / timing.seconds
            rows[name] = Row(
                milliseconds=1e3 * timing.seconds,
                spread=timing.spread,
                ratio=timing.ratio if baseline in steps else None,
                tokens_per_second=num_tokens / timing.seconds,
                tflops=tflops,
                share=tflops / self.product_tflops[workload.precision],
                megabytes=megabytes[name],
            )
        yield group, rows
        steps.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _peak_megabytes(self, step: Callable[[], None]) -> float | None:
        if self.device.type != "cuda":
            step()
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return 1e-6 * (torch.cuda.max_memory_allocated() - before)

    def _training(self) -> Iterator[tuple[str, dict[str, Row]]]:
        """Whole runs of the context model and of a Transformer of equal size."""
        for model in ("gated", "transformer") if self.extent.training else ():
            group = f"training {' '.join(self.extent.training)}"
            if self.seconds_left < 0:
                yield group, {model: Row(error="no time left")}
                continue
            overrides = (f"model={model}", *self.extent.training)
            yield group, {model: run_speed(overrides, self.device, self.seconds_left)}


def seconds_on_gpu(action: Callable[[], object]) -> float:
    """Seconds from the beginning of what an action starts on the GPU to its end."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    action()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def _transformer(number: int) -> LanguageModel:
    """A Transformer of six blocks with about so many parameters."""

    def build(width: int) -> LanguageModel:
        return LanguageModel(
            VOCABULARY,
            width,
            [partial(Attention, num_heads=width // STEP, num_layers=6, norm_first=True)],
            feedforward_dim=4 * width,
            dropout=0.1,
        )

    return build(_width(build, number))


def _lstm(number: int) -> LanguageModel:
    """An LSTM of one layer with about so many parameters."""

    def build(width: int) -> LanguageModel:
        return LanguageModel(VOCABULARY, width, [LSTM], hidden_dim=width, num_layers=1)

    return build(_width(build, number))


def _width(build: Callable[[int], LanguageModel], number: int) -> int:
    def cost(width: int) -> int:
        with torch.device("meta"):
            return num_parameters(build(width))

    return nearest_width(cost, number, STEP, "parameters")


def _compiled(size: Size) -> LanguageModel:
    model = size.build(Reference())
    model.recurrent_layers[0].cell.compile()
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
