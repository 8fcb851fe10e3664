"""Real text (`sweep=text`): bits per byte of models of equal size, by tokens and by time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from newllm.runs.gathering import Run
from newllm.statistics.intervals import Interval, mean_interval
from newllm.statistics.trials import best_trials, purpose

NAME = "text"
REFERENCES = "test_references_bits_per_byte"
# Variants are called PART_MODEL.
PARTS = {"tokens": "equal tokens", "time": "equal time"}


@dataclass(frozen=True)
class Contestant:
    """A model, trained for a number of tokens or a time.

    Attributes:
        part: a key of `PARTS`.
        model: a key of `newllm.reporting.models.MODELS`.
        runs: of the best trial with other seeds, none of which diverged.
    """

    part: str
    model: str
    runs: Sequence[Run]

    @property
    def bits_of_runs(self) -> list[float]:
        """Bits per byte on the test split, of each run."""
        return [run.result["test_bits_per_byte"] for run in self.runs]

    @property
    def bits(self) -> Interval:
        """Their mean over seeds."""
        return mean_interval(self.bits_of_runs)

    @property
    def documents_half_width(self) -> float:
        """Of the 95 % interval over the documents of the test split, of the first run."""
        return float(self.runs[0].result["bits_per_byte"]["test"]["half_width"])

    @property
    def seconds_of_runs(self) -> list[float]:
        """The time that each run took."""
        return [run.result["seconds"] for run in self.runs]

    @property
    def minutes(self) -> Interval:
        """The mean of these times, in minutes."""
        return mean_interval([seconds / 60 for seconds in self.seconds_of_runs])


def contestants(runs: Sequence[Run]) -> list[Contestant]:
    """All variants whose best trial was run again, in the order of the sweep."""
    found = []
    for best in best_trials(NAME, runs):
        part, _, model = best.variant.partition("_")
        if own := [run for run in best.again if _is_tested(run)]:
            found.append(Contestant(part, model, own))
    return found


def own_runs(runs: Sequence[Run]) -> list[Run]:
    """The trials and all later runs of the variants that have a result."""
    found = {f"{one.part}_{one.model}" for one in contestants(runs)}
    return [run for run in runs if run.known_as in found and purpose(NAME, run)]


def references(found: Sequence[Contestant]) -> Mapping[str, float]:
    """Bits per byte of the references on the test split, by name."""
    return found[0].runs[0].result[REFERENCES]


def _is_tested(run: Run) -> bool:
    result = run.result
    of_documents = ((result.get("bits_per_byte") or {}).get("test") or {}).get("half_width")
    numbers = [*map(result.get, ("test_bits_per_byte", "seconds", "steps")), of_documents]
    is_complete = all(isinstance(number, int | float) for number in numbers)
    return run.is_done and is_complete and bool(result.get(REFERENCES))
