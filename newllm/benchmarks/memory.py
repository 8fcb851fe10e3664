"""Memory and latency by length: fixed states, and a Transformer that caches all tokens.

Every point is measured in a process of its own, whose allocator holds nothing of other points.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from newllm.benchmarks.decoders import (
    CHUNK,
    CONTEXT,
    MODELS,
    PARAMETERS,
    Decoder,
    build,
    decoder,
)
from newllm.benchmarks.peak import peak_bytes
from newllm.benchmarks.workloads import VOCABULARY, Trainee
from newllm.runs.writing import written_whole

TIMED_TOKENS = 100
TBPTT_STEPS = 256  # of training on streams
INFERENCE = "inference"
TRAINING = "training through all tokens", "training with recompute", "training on streams"


@dataclass(frozen=True)
class Point:
    """A model at one length.

    Attributes:
        what: `inference`, or a way of training.
        model: its name.
        length: tokens before those that are timed, or those of a training row.
        megabytes: by which the resident memory of the process rises at its peak. In inference, the
            model has already read a chunk.
        state_bytes: of one sequence.
        milliseconds: median per token, in inference.
    """

    what: str
    model: str
    length: int
    megabytes: float
    state_bytes: int
    milliseconds: float | None = None


@dataclass(frozen=True)
class Lengths:
    """Which lengths are measured, as powers of two, and which numbers of rows."""

    inference: Sequence[int] = tuple(2**k for k in range(8, 18))
    training: Sequence[int] = tuple(2**k for k in range(8, 15))
    batch_sizes: Sequence[int] = (1, 4, 16, 64)
    parameters: int = PARAMETERS


QUICK = Lengths((256, 512, 1024), (256, 512, 1024), (1, 4), 50_000)


def measure_memory(lengths: Lengths, file: Path) -> dict[str, Any]:
    """Take all measurements; print and write each as it is taken.

    Args:
        lengths: what to measure.
        file: where to write `points`, and `tokens_per_second` by model and number of rows.
    """
    found: dict[str, Any] = {
        "parameters": lengths.parameters,
        "points": [],
        "tokens_per_second": {},
    }
    for point in _points(lengths):
        found["points"].append(asdict(point))
        _tell(point)
        _write(file, found)
    for name in MODELS:
        rates = {
            size: _in_a_process(_tokens_per_second, name, size, lengths.parameters)
            for size in lengths.batch_sizes
        }
        found["tokens_per_second"][name] = rates
        print(f"tokens per second, {name}: {rates}", flush=True)
        _write(file, found)
    return found


def _points(lengths: Lengths) -> Iterator[Point]:
    for name in MODELS:
        for length in lengths.inference:
            arguments = name, length, lengths.parameters
            point = _in_a_process(_inference, *arguments, environment=EXACT)
            yield replace(point, milliseconds=_in_a_process(_milliseconds, *arguments))
    for what in TRAINING:
        for length in lengths.training:
            yield _in_a_process(_training, what, length, lengths.parameters, environment=EXACT)


def _tell(point: Point) -> None:
    speed = "" if point.milliseconds is None else f", {point.milliseconds:.3f} ms per token"
    print(
        f"{point.what}, {point.model}, {point.length:,} tokens: {point.megabytes:.2f} MB, "
        f"state {point.state_bytes:,} bytes{speed}",
        flush=True,
    )


def _write(file: Path, found: Mapping[str, Any]) -> None:
    with written_whole(file) as partial_file:
        partial_file.write_text(json.dumps(found, indent=1) + "\n")


Result = TypeVar("Result")
# Of glibc's allocator (mallopt(3)): blocks from 64 kB are returned as soon as they are freed. By
# default it keeps them for later, so that the memory of a process is more than it uses, and differs
# from process to process. This takes time, so times are measured without it.
EXACT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_ARENA_MAX": "1",
}


def _in_a_process(
    measure: Callable[..., Result], *arguments: Any, environment: Mapping[str, str] | None = None
) -> Result:
    """Measure in a new process, with further environment variables."""
    with (
        _environment(environment or {}),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        return pool.submit(_on_one_thread, measure, arguments).result()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables of the processes that are started within."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _on_one_thread(measure: Callable[..., Result], arguments: Sequence[Any]) -> Result:
    torch.set_num_threads(1)
    return measure(*arguments)


def _inference(name: str, length: int, parameters: int) -> Point:
    """The memory of reading `length` tokens, and more of them one by one."""
    decode = decoder(name, 1, length + TIMED_TOKENS, parameters)
    decode.warm_up()  # takes what every process takes once
    megabytes = peak_bytes(partial(_seconds_of_steps, decode, length)) / 1e6
    return Point(INFERENCE, name, length, megabytes, decode.state_bytes(length))


def _milliseconds(name: str, length: int, parameters: int) -> float:
    """The median time of a token after `length` others."""
    decode = decoder(name, 1, length + TIMED_TOKENS, parameters)
    return 1000 * statistics.median(_seconds_of_steps(decode, length))


def _seconds_of_steps(decode: Decoder, length: int) -> list[float]:
    """Read `length` tokens, then time more of them one by one."""
    decode.read(length)
    seconds = []
    for number in range(TIMED_TOKENS):
        started = time.perf_counter()
        decode.step(length + number)
        seconds.append(time.perf_counter() - started)
    return seconds


def _tokens_per_second(name: str, num_rows: int, parameters: int) -> float:
    """Tokens of all rows together, after as many as fill two chunks."""
    decode = decoder(name, num_rows, 2 * CHUNK + TIMED_TOKENS, parameters)
    return round(num_rows / statistics.median(_seconds_of_steps(decode, 2 * CHUNK)), 1)


def _training(what: str, length: int, parameters: int) -> Point:
    """Train the context model on one row of `length` tokens, in one step or window by window."""
    model = build(CONTEXT, parameters)
    model.recompute = what == TRAINING[1]
    trainee = Trainee(model)
    trainee.step(1, TBPTT_STEPS)()  # creates the gradients and the optimizer's state
    step = (
        partial(_train_on_stream, trainee, length)
        if what == TRAINING[2]
        else trainee.step(1, length)
    )
    return Point(what, CONTEXT, length, peak_bytes(step) / 1e6, model.state_bytes(length))


def _train_on_stream(trainee: Trainee, length: int) -> None:
    """Carry the state from window to window, without its gradient."""
    state = None
    for _ in range(0, length, TBPTT_STEPS):
        tokens_BT = torch.randint(4, VOCABULARY, (1, TBPTT_STEPS + 1))
        loss_BT, _, state = trainee.model.score(tokens_BT[:, :-1], tokens_BT[:, 1:], state)
        trainee.take(loss_BT.mean())
        state = tuple(part.detach() for part in state)
