"""The examination of a model (`sweep=examination model=NAME`): its runs, and what they show.

Variants are SIZE_TASK. Each model has a trial for each learning rate; the one with the lowest
validation loss is run again with other seeds, which are averaged.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from newllm.config.naming import TRIAL, choices, is_of_a_model
from newllm.config.study_file import baselines_of, sweeper_of
from newllm.runs.directory import ENDS
from newllm.runs.gathering import Run
from newllm.statistics.intervals import Interval, compare, criteria, mean_interval, verdicts

NAME = "examination"
SIZES = ("full", "quick")
SOLVED = 0.999  # of the answers at a length, in every run
BASELINES = {"lstm": "LSTM", "transformer": "Transformer"}
BETTER, WORSE, EQUAL, UNDECIDED = "better", "worse", "as good", "undecided"


@dataclass(frozen=True)
class ExaminationTask:
    """A task of the examination.

    Attributes:
        title: for readers.
        metric: what is reported of it.
        is_loss: whether less is better.
        smallest_effect: of the metric; less is no difference that anyone should care for.
    """

    title: str
    metric: str
    is_loss: bool = False
    smallest_effect: float = 0.01

    @property
    def is_tracking(self) -> bool:
        """Whether it is a task of states, whose rows have more symbols than in training."""
        return self.metric == "accuracy"

    @property
    def scale(self) -> int:
        """What the metric is multiplied by for readers, who see accuracies in percent."""
        return 100 if self.is_tracking else 1

    def value(self, run: Run) -> float | None:
        """What a run reached; None if it does not say."""
        if not self.is_loss:
            return _at(run, lengths_of(run)[-1:], self.metric)
        found = run.result.get(self.metric)
        return float(found) if isinstance(found, int | float) else None


# In the order of a card.
TASKS = {
    "language": ExaminationTask("language, 500 sentences", "test_loss", True, 0.05),
    "sentences": ExaminationTask("language, 10,000 sentences", "test_loss", True, 0.05),
    "text": ExaminationTask("source code", "test_bits_per_byte", True, 0.02),
    "parity": ExaminationTask("parity", "accuracy"),
    "s3": ExaminationTask("S3", "accuracy"),
    "s5": ExaminationTask("S5", "accuracy"),
    "recall": ExaminationTask("recall", "bits_recalled", smallest_effect=1.0),
}


def _at(run: Run, lengths: Sequence[int], metric: str) -> float | None:
    evaluation = run.result.get("evaluation") or {}
    found = [evaluation.get(f"length_{length}", {}).get(metric) for length in lengths]
    return float(found[0]) if found and isinstance(found[0], int | float) else None


def lengths_of(run: Run) -> list[int]:
    """The lengths of rows, or numbers of pairs, that a run was evaluated at, in order."""
    names = run.result.get("evaluation") or {}
    return sorted(int(name[7:]) for name in names if re.fullmatch(r"length_\d+", name))


def trained_length(run: Run) -> int:
    """The longest row of its training, or the most pairs."""
    return int((run.chose("data.lengths") or "[1,1]").strip("[]").split(",")[-1])


@dataclass(frozen=True)
class Examined:
    """A model at one size of the examination.

    Attributes:
        size: one of `SIZES`.
        model: the choices that make the model, by key.
        others: further choices, which change how it is trained.
        runs: of the best trial of each task with other seeds, without those that diverged.
        diverged: how many did, by task.
    """

    size: str
    model: Mapping[str, str]
    others: Mapping[str, str]
    runs: Mapping[str, Sequence[Run]]
    diverged: Mapping[str, int] = field(default_factory=dict)

    @property
    def baseline(self) -> str | None:
        """Its name among the baselines, if it is one."""
        named = {name: choices(lines) for name, lines in baselines_of(NAME).items()}
        return next((name for name, made_of in named.items() if made_of == self.model), None)

    def is_like(self, other: Examined) -> bool:
        """Whether another model was trained in the same way."""
        return (self.size, self.others) == (other.size, other.others)

    @property
    def label(self) -> str:
        """Such as `gated num_layers=2`."""
        words = [
            value if key == "model" else f"{key.removeprefix('model.')}={value}"
            for key, value in sorted(
                self.model.items(), key=lambda item: (item[0] != "model", item)
            )
        ]
        name = BASELINES[self.baseline] if self.baseline else " ".join(words) or "default model"
        return " ".join([name, *(f"{key}={value}" for key, value in sorted(self.others.items()))])

    def values(self, task: str) -> list[float]:
        """What its runs reached in a task."""
        found = [TASKS[task].value(run) for run in self.runs.get(task, ())]
        return [value for value in found if value is not None]

    def mean(self, task: str) -> Interval | None:
        """The mean of these."""
        values = self.values(task)
        return mean_interval(values) if values else None

    def learned(self, task: str) -> float:
        """The lowest share of right answers of its runs at the longest training length."""
        found = [(run.result.get("evaluation") or {}).get("test", {}) for run in self.runs[task]]
        return min(float(each.get("accuracy") or 0.0) for each in found)

    def solved_length(self, task: str) -> int:
        """The length up to which every run solves a task at every length; 0 for none."""
        if self.diverged.get(task) or self.learned(task) < SOLVED:
            return 0
        longest = trained_length(self.runs[task][0])
        for length in lengths_of(self.runs[task][0]):
            accuracies = [_at(run, [length], "accuracy") or 0.0 for run in self.runs[task]]
            if min(accuracies) < SOLVED:
                break
            longest = length
        return longest

    @cached_property
    def text_run(self) -> Run | None:
        """The first run on source code, whose model is measured."""
        return next(iter(self.runs.get("text", ())), None)


def examined(runs: Sequence[Run]) -> list[Examined]:
    """All models with a task whose best trial was run again; baselines last."""
    groups: dict[tuple[str, frozenset[Any]], dict[str, list[Run]]] = defaultdict(dict)
    for run in runs:
        size, _, task = str(run.known_as).partition("_")
        if purpose(run) and size in SIZES and task in TASKS:
            made_of = frozenset((k, v) for k, v in run.choices.items() if k != TRIAL)
            groups[size, made_of].setdefault(task, []).append(run)
    found = []
    for (size, made_of), by_task in groups.items():
        best = {task: _best(own) for task, own in by_task.items()}
        again = {
            task: done
            for task, own in best.items()
            if (done := [run for run in own if run.is_done])
        }
        diverged = {task: len(own) - len(again.get(task, ())) for task, own in best.items()}
        if again:
            model, others = (
                {key: value for key, value in made_of if is_of_a_model(key) == wanted}
                for wanted in (True, False)
            )
            found.append(Examined(size, model, others, again, diverged))
    return sorted(found, key=lambda one: (SIZES.index(one.size), bool(one.baseline), one.label))


@dataclass(frozen=True)
class Difference:
    """How a model differs from another one in a task.

    Attributes:
        model: the one that is judged.
        other: the one that it is compared with.
        task: a key of `TASKS`.
        interval: of the difference of the means, in the unit of the task.
        verdict: one of `BETTER`, `WORSE`, `EQUAL`, `UNDECIDED`.
    """

    model: Examined
    other: Examined
    task: str
    interval: Interval
    verdict: str


def differences(pairs: Sequence[tuple[Examined, Examined]]) -> list[Difference]:
    """The differences between the models of each pair, as one family of comparisons (Holm).

    A task is left out where one of the two has fewer than two runs.
    """
    places = [
        (model, other, task)
        for model, other in pairs
        for task in TASKS
        if min(len(model.values(task)), len(other.values(task))) >= 2
    ]
    compared = [
        compare(model.values(task), other.values(task), TASKS[task].smallest_effect)
        for model, other, task in places
    ]
    words = {"no effect": EQUAL, "undecided": UNDECIDED}
    return [
        Difference(
            *place,
            each.interval,
            words.get(word, BETTER if (word == "lower") == TASKS[place[2]].is_loss else WORSE),
        )
        for place, each, word in zip(
            places, compared, verdicts(compared, criteria().alpha), strict=True
        )
    ]


def own_runs(runs: Sequence[Run]) -> list[Run]:
    """All runs of the examination that have ended."""
    return [run for run in runs if purpose(run)]


def purpose(run: Run) -> str | None:
    """`trial`, `again` for a run of the best trial with another seed, or None for others."""
    if run.study != NAME or run.status not in ENDS or TRIAL not in run.choices:
        return None
    is_trial = str(run.result["seed"]) == sweeper_of(NAME)["params"]["seed"]
    return "trial" if is_trial else "again"


def _best(runs: Sequence[Run]) -> list[Run]:
    """The runs of the best trial with other seeds, in the order of these."""
    trials = [run for run in runs if purpose(run) == "trial" and run.is_done]
    if not trials:
        return []
    best = min(trials, key=lambda run: run.result["best_val_loss"]).choices[TRIAL]
    again = [run for run in runs if purpose(run) == "again" and run.choices[TRIAL] == best]
    return sorted(again, key=lambda run: run.result["seed"])
