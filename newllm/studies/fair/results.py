"""The fair comparison (`sweep=fair`): equal parameters, equal search, chosen on validation, tested.

Losses are means over tokens, in nats; a gap is a test loss minus that of the grammar on the same
sentences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from newllm.config.study_file import stage_of, sweeper_of, variants_of
from newllm.runs.directory import ENDS
from newllm.runs.gathering import Run
from newllm.statistics.intervals import (
    Comparison,
    Interval,
    compare,
    criteria,
    mean_interval,
    verdicts,
)

NAME = "fair"
# Variants are called MODEL_SIZE.
MODELS = {
    "context": "context model",
    "transformer": "Transformer",
    "lstm": "LSTM",
    "gru": "GRU",
    "elman": "Elman",
    "mingru": "minGRU",
}
SIZES = {
    "200k": "0.2 million parameters",
    "700k": "0.7 million parameters",
    "state": "0.2 million parameters, state of 512 bytes",
}
# The settings of the final runs of a best trial.
SETTINGS = {
    "seeds": "other seeds",
    "corpora": "redrawn corpora",
    "longer": "three times the epochs",
    "large": "25 times the sentences",
}


@dataclass(frozen=True)
class Contestant:
    """A model at one size: its trials, and the final runs of the best one.

    Attributes:
        model: a key of `MODELS`.
        size: a key of `SIZES`.
        trials: runs of the search, by their names.
        finals: runs of the best trial, by setting and then by seed (of the corpus, where it was
            redrawn).
    """

    model: str
    size: str
    trials: Mapping[str, Run]
    finals: Mapping[str, Mapping[str, Run]]

    @property
    def losses(self) -> dict[str, float]:
        """Best validation loss of each trial; infinite for one that diverged."""
        return {
            name: run.result["best_val_loss"] if run.is_done else math.inf
            for name, run in self.trials.items()
        }

    @property
    def best_trial(self) -> str:
        losses = self.losses
        return min(losses, key=lambda name: losses[name])

    @property
    def num_unfinished(self) -> int:
        """The number of trials with their best loss in the last epoch."""
        results = [run.result for run in self.trials.values() if run.is_done]
        return sum(result["best_epoch"] == result["epochs"] for result in results)

    @property
    def chosen(self) -> Run:
        """The best trial's run."""
        return self.trials[self.best_trial]

    @property
    def expected_best(self) -> list[float]:
        """Best validation loss that a search of 1, 2, ... trials finds on average."""
        return expected_best(list(self.losses.values()))

    def gaps(self, setting: str) -> dict[str, float]:
        """Test losses above the grammar's, by seed, of the runs that did not diverge."""
        return {
            seed: run.result["test_loss"] - run.result["test_oracle_loss"]
            for seed, run in self.finals.get(setting, {}).items()
            if run.is_done
        }

    def num_diverged(self, setting: str) -> int:
        """The number of runs without a gap."""
        return sum(not run.is_done for run in self.finals.get(setting, {}).values())

    def gap(self, setting: str) -> Interval | None:
        """The mean gap."""
        values = list(self.gaps(setting).values())
        return mean_interval(values) if values else None


def contestants(runs: Sequence[Run]) -> list[Contestant]:
    """All models at all sizes that have trials, in the order of the sweep."""
    found = []
    for variant in variants_of(NAME):
        own = [run for run in runs if run.study == NAME and run.known_as == variant]
        trials = {run.choices["trial"]: run for run in own if purpose(run) == "trial"}
        if trials:
            model, _, size = variant.partition("_")
            contestant = Contestant(model, size, trials, {})
            finals = _finals(own, contestant.best_trial)
            found.append(replace(contestant, finals=finals))
    return found


def purpose(run: Run) -> str | None:
    """The purpose of a run: `trial`, a key of `SETTINGS`, or None for other runs."""
    chosen = run.choices
    if run.study != NAME or run.status not in ENDS or chosen.pop("trial", None) is None:
        return None
    if run.result.get("test_oracle_loss") is None:  # a search leaves the test split alone
        is_first = str(run.result["seed"]) == sweeper_of(NAME)["params"]["seed"]
        return "trial" if is_first and not chosen else None
    return stage_of(NAME, chosen)


def _finals(runs: Sequence[Run], trial: str) -> dict[str, dict[str, Run]]:
    finals: dict[str, dict[str, Run]] = {setting: {} for setting in SETTINGS}
    for run in runs:
        what = purpose(run)
        if what in SETTINGS and run.choices["trial"] == trial:
            seed = run.choices["data.seed"] if what == "corpora" else str(run.result["seed"])
            finals[what].setdefault(seed, run)
    return finals


@dataclass(frozen=True)
class Difference:
    """The context model's gap minus another model's, seed by seed or corpus by corpus."""

    size: str
    setting: str
    other: str
    comparison: Comparison
    verdict: str


def differences(found: Sequence[Contestant]) -> list[Difference]:
    """The context model against each other model; Holm's correction is over all of these."""
    context = {contestant.size: contestant for contestant in found if contestant.model == "context"}
    compared: list[tuple[str, str, str, Comparison]] = []
    for other in found:
        if other.model == "context" or other.size not in context:
            continue
        for setting in SETTINGS:
            ours, theirs = context[other.size].gaps(setting), other.gaps(setting)
            shared = sorted(ours.keys() & theirs.keys())
            if len(shared) >= 2:
                pairs = [ours[seed] for seed in shared], [theirs[seed] for seed in shared]
                comparison = compare(*pairs, criteria().smallest_effects["loss"], paired=True)
                compared.append((other.size, setting, other.model, comparison))
    words = verdicts([comparison for *_, comparison in compared], criteria().alpha)
    return [Difference(*entry, word) for entry, word in zip(compared, words, strict=True)]


def expected_best(losses: Sequence[float]) -> list[float]:
    """The mean of the best loss of 1, 2, ... of these trials, drawn without replacement.

    It is exact since trials are independent draws (Dodge et al. 2019, "Show Your Work").
    """
    ordered, n = sorted(losses), len(losses)
    return [
        sum(
            loss * math.comb(n - rank - 1, number - 1) / math.comb(n, number)
            for rank, loss in enumerate(ordered[: n - number + 1])  # the others are never best
        )
        for number in range(1, n + 1)
    ]
