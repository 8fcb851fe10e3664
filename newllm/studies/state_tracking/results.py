"""State tracking (`sweep=state_tracking`): accuracies at lengths beyond those of the training."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from newllm.config.study_file import stage_of, sweeper_of, variants_of
from newllm.data.source import TEST
from newllm.runs.directory import ENDS
from newllm.runs.gathering import Run
from newllm.statistics.intervals import Interval, mean_interval

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
MODELS = {
    "gated": "context model, gated",
    "additive": "context model, additive",
    "transformer_learned": "Transformer, learned positions",
    "transformer_rotary": "Transformer, rotary positions",
    "transformer_nope": "Transformer, no positions",
    "lstm": "LSTM",
    "gru": "GRU",
    "mingru": "minGRU",
}


@dataclass(frozen=True)
class Entry:
    """A model on a task: the best of its trials, and the runs that were made of it again.

    Attributes:
        task: a key of `TASKS`.
        model: a key of `MODELS`.
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
    for variant in variants_of(NAME):
        own = [run for run in runs if run.known_as == variant and purpose(run)]
        trials = [run for run in own if purpose(run) == "trial" and run.is_done]
        if trials:
            best = min(trials, key=lambda run: run.result["best_val_loss"])
            again = [run for run in own if purpose(run) == "again" and _trial(run) == _trial(best)]
            task, _, model = variant.partition("_")
            found += [Entry(task, model, best, again)] * bool(again)
    return found


def _trial(run: Run) -> str | None:
    return run.choices.get("trial")


def purpose(run: Run) -> str | None:
    """The purpose of a run: `trial`, `again` for the best trial's, or None for other runs."""
    chosen = run.choices
    if run.study != NAME or run.status not in ENDS or chosen.pop("trial", None) is None:
        return None
    if not chosen and str(run.result["seed"]) == sweeper_of(NAME)["params"]["seed"]:
        return "trial"
    return "again" if stage_of(NAME, chosen) else None
