"""From the original to the modern recipe: what each change does, added to one, removed from other.

Losses are best validation losses, means over tokens, in nats; an effect is that of the change, so
that a negative one is an improvement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from newllm.config.study_file import variants_of
from newllm.reporting.document import Document
from newllm.reporting.formatting import signed, with_count
from newllm.reporting.page import Study
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run, is_of
from newllm.statistics.intervals import Interval, compare_by_seed, criteria, mean_interval
from newllm.statistics.variants import start_alike

NAME, ORIGINAL, MODERN = "ladder", "original", "modern"
RUNGS = {
    "initialization": "variance-preserving initialisation",
    "learning_rate": "20 times the learning rate, warm-up, decay",
    "residual": "residual, pre-normalized FNN",
    "adamw": "AdamW, weight decay, shorter memory",
    "dropout": "more dropout",
    "batching": "shuffled instead of length-bucketed batches",
    "output": "one output class per vocabulary entry",
    "size": "C = H = E = 128, 3 layers",
    "clipping": "constant gradient clipping",
    "epochs": "40 epochs instead of 50",
}


DEFINITION = (
    "Best validation losses on 500 sentences, averaged over tokens, in nats. Original recipe "
    "(without early stopping): {original}; modern recipe: {modern}. An effect is the loss with "
    "the change minus the loss without it, with its 95 % interval: paired by seed where model "
    "and corpus have the same size, unpaired (Welch's t-test) otherwise. Below zero, the "
    "change helps. n is the number of seeds. The original recipe already uses shuffled batches."
)


@dataclass(frozen=True)
class Rung:
    """One change: losses and effects of adding and of removing it; None where it was not run."""

    name: str
    added: Interval | None
    effect_added: Interval | None
    removed: Interval | None
    effect_removed: Interval | None


def climb(runs: Sequence[Run]) -> list[Rung]:
    """All rungs."""
    original, modern = _runs_of(ORIGINAL, runs), _runs_of(MODERN, runs)
    rungs = []
    for name in changes():
        added, removed = (_runs_of(f"{what}_{name}", runs) for what in ("add", "remove"))
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


def changes() -> list[str]:
    """The names of the changes, in the order of the sweep."""
    return [name[7:] for name in variants_of(NAME) if name.startswith("remove_")]


def own_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs of the ladder alone; those of the modern recipe belong to other parts, too."""
    names = [ORIGINAL, *(f"{what}_{name}" for what in ("add", "remove") for name in changes())]
    return [run for name in names for run in _runs_of(name, runs)]


def ends(runs: Sequence[Run]) -> tuple[Interval | None, Interval | None]:
    """Losses of the original and the modern recipe."""
    return _mean(_runs_of(ORIGINAL, runs)), _mean(_runs_of(MODERN, runs))


def _runs_of(name: str, runs: Sequence[Run]) -> list[Run]:
    study = None if name == MODERN else NAME
    return [run for run in runs if run.is_done and is_of(run, name, study)]


def _losses(runs: Sequence[Run]) -> dict[int, float]:
    return {run.result["seed"]: run.result[criteria().metric] for run in runs}


def _mean(runs: Sequence[Run]) -> Interval | None:
    return mean_interval(list(_losses(runs).values())) if runs else None


def _effect(with_change: Sequence[Run], without: Sequence[Run]) -> Interval | None:
    comparison = compare_by_seed(
        _losses(with_change),
        _losses(without),
        criteria().smallest_effects["loss"],
        start_alike([*with_change, *without]),
    )
    return comparison.interval if comparison else None


def ladder_effects(document: Document, runs: Sequence[Run], _: Translate, label: Translate) -> None:
    """Add the effect of each change from the original to the modern recipe."""
    original, modern = ends(runs)
    document.text(_(DEFINITION).format(original=with_count(original), modern=with_count(modern)))
    words = ("change", "original with it", "effect", "modern without it", "effect")
    document.table(
        [_(word) for word in words],
        [
            [
                _(RUNGS[rung.name]),
                with_count(rung.added),
                signed(rung.effect_added),
                with_count(rung.removed),
                signed(rung.effect_removed),
            ]
            for rung in climb(runs)
        ],
    )


STUDY = Study(
    NAME,
    title="From the original to the modern recipe, one change at a time",
    place=2,
    own=own_runs,
    part=ladder_effects,
)
