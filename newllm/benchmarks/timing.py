"""Timing side by side, and the files that keep the results."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Timing:
    """One row of a benchmark.

    Attributes:
        seconds: median over the rounds.
        ratio: how many times faster than the baseline, median over the rounds; 1 for the baseline.
        spread: half the interquartile range of the seconds, as a share of the median.
        megabytes: peak memory, if it was measured; then `ratio` compares memory.
    """

    seconds: float
    ratio: float
    spread: float
    megabytes: float | None = None

    def __str__(self) -> str:
        if self.megabytes is not None:
            return f"{self.megabytes:.0f} MB, {self.ratio:.2f}x less"
        return f"{1000 * self.seconds:.2f} ms +-{100 * self.spread:.0f} %, {self.ratio:.2f}x"


def seconds_on_host(action: Callable[[], object]) -> float:
    """Seconds until an action returns."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def side_by_side(
    contestants: Mapping[str, Callable[[], object]],
    num_rounds: int,
    num_warmup: int = 2,
    seconds_of: Callable[[Callable[[], object]], float] = seconds_on_host,
) -> dict[str, Timing]:
    """Time actions in turns, so that a slow phase of the machine affects all of them alike.

    Args:
        contestants: actions by name; the first is the baseline of all ratios.
        num_rounds: timed calls of each action.
        num_warmup: calls of each action before that.
        seconds_of: calls an action and measures its time.
    """
    for _ in range(num_warmup):
        for action in contestants.values():
            action()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(num_rounds):
        for name, action in contestants.items():
            seconds[name].append(seconds_of(action))
    baseline = next(iter(seconds.values()))
    return {name: _summarize(times, baseline) for name, times in seconds.items()}


def _summarize(times: list[float], baseline: list[float]) -> Timing:
    median = statistics.median(times)
    ratio = statistics.median(b / own for b, own in zip(baseline, times, strict=True))
    low, _, high = statistics.quantiles(times, n=4)
    return Timing(median, ratio, (high - low) / 2 / median)


def write_timings(path: Path, rows: Mapping[str, Timing]) -> None:
    """Write a flat JSON map from the name of a row to its figures."""
    flat = {
        name: {key: value for key, value in asdict(row).items() if value is not None}
        for name, row in rows.items()
    }
    path.write_text(json.dumps(flat, indent=1) + "\n")


def read_timings(path: Path) -> dict[str, Timing]:
    """Read what `write_timings` wrote.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    try:
        return {name: Timing(**row) for name, row in json.loads(path.read_text()).items()}
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: is not a benchmark.json") from error


def changes(old: Mapping[str, Timing], new: Mapping[str, Timing]) -> dict[str, float]:
    """How many times faster each row became, for the rows that both benchmarks have."""
    return {name: old[name].seconds / row.seconds for name, row in new.items() if name in old}
