"""From the original to the modern recipe: what each change does, added to one, removed from other.

Losses are best validation losses, means over tokens, in nats; an effect is that of the change, so
that a negative one is an improvement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from newllm.runs.gathering import Run, is_of
from newllm.statistics.intervals import Interval, mean_interval, plan
from newllm.statistics.pairing import compare_sides, start_alike

ORIGINAL, MODERN = "ladder_original", "modern"
RUNGS = {
    "initialization": "initialisation that keeps the variance",
    "learning_rate": "learning rate 20 times as high, warm-up, decay",
    "residual": "residual, pre-normalized FNN",
    "adamw": "AdamW, weight decay, shorter memory",
    "dropout": "more dropout",
    "batching": "shuffled batches instead of sentences of like length",
    "output": "output as large as the vocabulary",
    "size": "C = H = E = 128, 3 layers",
    "clipping": "constant gradient clipping",
    "epochs": "40 epochs instead of 50",
}


@dataclass(frozen=True)
class Rung:
    """One change: losses and effects of adding it and of taking it away, None where not run."""

    name: str
    added: Interval | None
    effect_added: Interval | None
    removed: Interval | None
    effect_removed: Interval | None


def climb(runs: Sequence[Run]) -> list[Rung]:
    """All rungs."""
    original, modern = _runs_of(ORIGINAL, runs), _runs_of(MODERN, runs)
    rungs = []
    for name in RUNGS:
        added, removed = (_runs_of(f"ladder_{what}_{name}", runs) for what in ("add", "remove"))
        rungs.append(
            Rung(
                name,
                _mean(added),
                _effect(added, original),
                _mean(removed),
                _effect(modern, removed),  # with the change, minus without
            )
        )
    return rungs


def is_rung(run: Run) -> bool:
    """Whether a run has its place in the ladder alone, as the modern recipe's own has not."""
    name = str(run.result.get("experiment"))
    rungs = {f"ladder_{what}_{rung}" for what in ("add", "remove") for rung in RUNGS}
    return run.is_done and name in {ORIGINAL, *rungs} and is_of(run, name)


def ends(runs: Sequence[Run]) -> tuple[Interval | None, Interval | None]:
    """The original and the modern recipe themselves."""
    return _mean(_runs_of(ORIGINAL, runs)), _mean(_runs_of(MODERN, runs))


def _runs_of(experiment: str, runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.is_done and is_of(run, experiment)]


def _losses(runs: Sequence[Run]) -> dict[int, float]:
    return {run.result["seed"]: run.result[plan().metric] for run in runs}


def _mean(runs: Sequence[Run]) -> Interval | None:
    return mean_interval(list(_losses(runs).values())) if runs else None


def _effect(with_change: Sequence[Run], without: Sequence[Run]) -> Interval | None:
    sides = compare_sides(
        _losses(with_change),
        _losses(without),
        plan().smallest_effects["loss"],
        start_alike([*with_change, *without]),
    )
    return sides.comparison.interval if sides else None
