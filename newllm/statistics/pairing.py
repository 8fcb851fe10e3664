"""Two groups of runs set against each other, in pairs where their runs belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from newllm.runs.gathering import Run
from newllm.statistics.intervals import Comparison, compare


@dataclass(frozen=True)
class Sides:
    """The values of both groups, in the same order if paired, and what their comparison says."""

    first: list[float]
    second: list[float]
    is_paired: bool
    comparison: Comparison


def compare_sides(
    first: Mapping[int, float],
    second: Mapping[int, float],
    smallest_effect: float,
    belong_together: bool,
) -> Sides | None:
    """Compare values that are known by their seed; None with fewer than two on a side.

    If runs of one seed belong together, those seeds count that both sides have.
    """
    shared = first.keys() & second.keys()
    is_paired = belong_together and len(shared) >= 2
    if is_paired:
        first, second = ({seed: side[seed] for seed in shared} for side in (first, second))
    values = [first[seed] for seed in sorted(first)], [second[seed] for seed in sorted(second)]
    if min(map(len, values)) < 2:
        return None
    return Sides(*values, is_paired, compare(*values, smallest_effect, is_paired))


def start_alike(runs: Sequence[Run]) -> bool:
    """Whether runs of one seed read the same batches with models of one size.

    Such runs have the same random draws, and so the same weights unless their scale was changed.
    """
    kinds = {(run.result.get("parameters"), run.result.get("data_sha256")) for run in runs}
    return len(kinds) == 1
