"""State tracking (`sweep=state_tracking`): accuracies at lengths beyond those of the training."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from newllm.data.source import TEST
from newllm.runs.gathering import Run
from newllm.statistics.intervals import Interval, mean_interval
from newllm.statistics.trials import best_trials, purpose

NAME = "state_tracking"
SOLVED = 0.999  # accuracy at every length
# Variants are called TASK_MODEL.
TASKS = {
    "parity": "parity",
    "cycle": "cycle navigation",
    "arithmetic": "modular arithmetic",
    "s3": "S3",
    "s3-128": "S3, longer training rows",
    "a5": "A5",
    "s5": "S5",
    "regular": "drawn automata",
}


@dataclass(frozen=True)
class Entry:
    """A model on a task: the best of its trials, and the runs that were made of it again.

    Attributes:
        task: a key of `TASKS`.
        model: a key of `newllm.reporting.models.MODELS`.
        trial: the run of the trial with the lowest validation loss.
        runs: of that trial with other seeds or other automata.
    """

    task: str
    model: str
    trial: Run
    runs: Sequence[Run]

    @property
    def longest_trained(self) -> int:
        """The longest length that was trained on."""
        return int(json.loads(self.trial.chose("data.lengths") or "")[1])

    @property
    def guessing(self) -> float:
        """The accuracy of guessing among the answers."""
        return math.exp(-self.trial.result["references"]["guess"])

    @cached_property
    def by_length(self) -> list[dict[int, dict[str, float]]]:
        """The metrics of each run that did not diverge, by length."""
        return [
            {
                self.longest_trained if split == TEST else int(split.removeprefix("length_")): own
                for split, own in (run.result["evaluation"] or {}).items()
            }
            for run in self.runs
            if run.is_done
        ]

    @property
    def lengths(self) -> set[int]:
        """The lengths that all of these runs were tested on."""
        return set.intersection(*map(set, self.by_length)) if self.by_length else set()

    def values(self, length: int, metric: str = "accuracy") -> list[float]:
        """A metric at a length, of each run that did not diverge."""
        return [metrics[length][metric] for metrics in self.by_length]

    def accuracy(self, length: int) -> Interval | None:
        """The mean accuracy at a length over the runs that did not diverge."""
        return mean_interval(self.values(length)) if length in self.lengths else None

    @property
    def num_solved(self) -> int:
        """The number of runs with an accuracy of at least `SOLVED` at every length."""
        lowest = [
            min(own["accuracy"] for own in metrics.values())
            for metrics in self.by_length
            if metrics
        ]
        return sum(accuracy >= SOLVED for accuracy in lowest)


def lengths_of(found: Sequence[Entry]) -> list[int]:
    """The longest training length and all lengths that any model was tested on, in order."""
    return sorted({found[0].longest_trained}.union(*(entry.lengths for entry in found)))


def entries(runs: Sequence[Run]) -> list[Entry]:
    """All models on all tasks whose best trial was run again, in the order of the sweep."""
    found = []
    for best in best_trials(NAME, runs):
        task, _, model = best.variant.partition("_")
        found.append(Entry(task, model, best.trial, best.again))
    return found


def own_runs(runs: Sequence[Run]) -> list[Run]:
    """The trials and all later runs of the models that have a result."""
    found = {f"{entry.task}_{entry.model}" for entry in entries(runs)}
    return [run for run in runs if run.known_as in found and purpose(NAME, run)]
