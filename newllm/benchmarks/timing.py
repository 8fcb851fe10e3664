"""Timing side by side: contestants take turns, so that a machine's mood falls on all alike."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Timing:
    """One row of a benchmark.

    Attributes:
        seconds: median over the rounds.
        ratio: how many times faster than the row's baseline, median over the rounds; 1 for the
            baseline itself.
        spread: half the distance between the quartiles of the seconds, as a share of the median.
        megabytes: of memory at the peak, where that was measured; then `ratio` is of it.
    """

    seconds: float
    ratio: float
    spread: float
    megabytes: float | None = None

    def as_row(self) -> dict[str, float]:
        """The figures by name, without those that were not measured."""
        return {name: figure for name, figure in asdict(self).items() if figure is not None}


def side_by_side(
    contestants: Mapping[str, Callable[[], object]], num_rounds: int, num_warmup: int = 2
) -> dict[str, Timing]:
    """Time some actions in turns; the first is the baseline of all ratios.

    Args:
        contestants: what to time, by name.
        num_rounds: how often each is timed.
        num_warmup: how often each is run before.
    """
    assert num_rounds >= 1, num_rounds
    for _ in range(num_warmup):
        for action in contestants.values():
            action()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(num_rounds):
        for name, action in contestants.items():
            started = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - started)
    baseline = next(iter(seconds.values()))
    return {name: _summarize(times, baseline) for name, times in seconds.items()}


def _summarize(times: list[float], baseline: list[float]) -> Timing:
    median = statistics.median(times)
    ratio = statistics.median(b / own for b, own in zip(baseline, times, strict=True))
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (median,) * 3
    return Timing(median, ratio, (high - low) / 2 / median)


def write_timings(path: Path, rows: Mapping[str, Timing]) -> None:
    """Write a flat JSON map from a row's name to its figures."""
    flat = {name: timing.as_row() for name, timing in rows.items()}
    path.write_text(json.dumps(flat, indent=1) + "\n")


def read_timings(path: Path) -> dict[str, Timing]:
    """Read what `write_timings` wrote.

    Raises:
        ValueError: if the file is missing or holds something else.
    """
    try:
        return {name: Timing(**row) for name, row in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a benchmark.json ({type(error).__name__})") from error


def changes(old: Mapping[str, Timing], new: Mapping[str, Timing]) -> Iterable[tuple[str, float]]:
    """Rows that both have, with old seconds over new: above 1 is faster now."""
    for name, timing in new.items():
        if name in old:
            yield name, old[name].seconds / timing.seconds
