"""The fair comparison (`sweep=fair`): equal cost, equal search, chosen on validation, tested once.

Losses are means over tokens, in nats; a gap is a test loss minus that of the grammar on the same
sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from newllm.analysis.gathering import Run
from newllm.analysis.search import expected_best
from newllm.analysis.statistics import Comparison, Interval, compare, mean_interval, plan, verdicts

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
    "state": "0.2 million parameters and a state of 512 bytes",
}
# What a best trial is run again for.
SETTINGS = {
    "seeds": "other seeds",
    "corpora": "redrawn corpora",
    "large": "25 times the sentences",
}


@dataclass(frozen=True)
class Contestant:
    """A model at one size: its trials and what its best one came to.

    Attributes:
        model: a key of `MODELS`.
        size: a key of `SIZES`.
        trials: best validation loss of each trial, by its name.
        finals: runs of the best trial, by setting and then by seed (of the corpus, where it was
            redrawn).
    """

    model: str
    size: str
    trials: Mapping[str, float]
    finals: Mapping[str, Mapping[str, Run]]

    @property
    def best_trial(self) -> str:
        return min(self.trials, key=lambda name: self.trials[name])

    @property
    def any_final(self) -> Run | None:
        """One that tells what the model is."""
        return next((run for runs in self.finals.values() for run in runs.values()), None)

    @property
    def expected_best(self) -> list[float]:
        """Best validation loss that a search of 1, 2, ... trials finds on average."""
        return expected_best(list(self.trials.values()))

    def gaps(self, setting: str) -> dict[str, float]:
        """Test losses above the grammar's, by seed."""
        return {
            seed: run.result["test_loss"] - run.result["test_oracle_loss"]
            for seed, run in self.finals.get(setting, {}).items()
        }

    def gap(self, setting: str) -> Interval | None:
        """Their mean."""
        values = list(self.gaps(setting).values())
        return mean_interval(values) if values else None


def contestants(runs: Sequence[Run]) -> list[Contestant]:
    """All models at all sizes that have trials, in the order of `SIZES` and `MODELS`."""
    found = []
    for size in SIZES:
        for model in MODELS:
            own = [
                run
                for run in runs
                if run.is_done and run.result.get("experiment") == f"fair_{model}_{size}"
            ]
            trials = {
                run.choices["trial"]: run.result["best_val_loss"] for run in own if _is_trial(run)
            }
            if trials:
                best = min(trials, key=lambda name: trials[name])
                again = [run for run in own if run.choices.get("trial") == best]
                found.append(Contestant(model, size, trials, _finals(again)))
    return found


def _is_trial(run: Run) -> bool:
    return run.choices.keys() == {"trial"} and run.result["test_loss"] is None


def _finals(runs: Sequence[Run]) -> dict[str, dict[str, Run]]:
    finals: dict[str, dict[str, Run]] = {setting: {} for setting in SETTINGS}
    for run in runs:
        choices = run.choices
        if run.result["test_loss"] is None:
            continue
        if choices.keys() == {"trial"}:
            finals["seeds"][str(run.result["seed"])] = run
        elif "data.seed" in choices:
            finals["corpora"][choices["data.seed"]] = run
        elif choices.get("data") == "quality12500":
            finals["large"][str(run.result["seed"])] = run
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
                comparison = compare(*pairs, plan().smallest_effects["loss"], paired=True)
                compared.append((other.size, setting, other.model, comparison))
    words = verdicts([comparison for *_, comparison in compared], plan().alpha)
    return [Difference(*entry, word) for entry, word in zip(compared, words, strict=True)]
