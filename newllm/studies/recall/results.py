"""Associative recall (`sweep=recall`): accuracy by number of pairs, and bits recalled from a state.

Each variant has a trial for each learning rate. The one with the lowest validation loss is run
again with other seeds, which are averaged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from newllm.config.naming import split
from newllm.config.study_file import variants_of
from newllm.runs.gathering import Run
from newllm.statistics.intervals import Interval, mean_interval
from newllm.statistics.trials import best_trials, purpose

NAME = "recall"
# Variants are called PART_MODEL or PART_MODEL_SIZE.
PARTS = {
    "dim32": "Embeddings of dimension 32, equal parameters",
    "state": "States of all sizes",
}
BITS_OF_NUMBER, BITS_OF_BYTE = 32, 8
READ = ("accuracy", "bits_recalled")  # metrics of each number of pairs


@dataclass(frozen=True)
class Contestant:
    """A model of one size: the runs of its best trial with other seeds.

    Attributes:
        variant: its name.
        runs: one for each seed, none of which diverged.
    """

    variant: str
    runs: Sequence[Run]

    @property
    def part(self) -> str:
        """A key of `PARTS`."""
        return self.variant.partition("_")[0]

    @property
    def model(self) -> str:
        """A key of `newllm.reporting.models.MODELS`."""
        return self.variant.partition("_")[2].rstrip("_0123456789")

    @property
    def is_transformer(self) -> bool:
        """Whether it has nothing but attention."""
        return self.model.startswith("transformer")

    @property
    def state_bits(self) -> int:
        """Of one sequence's state; that of a Transformer after the longest row."""
        return int(self.runs[0].result["state_bytes"]) * BITS_OF_BYTE

    @property
    def numbers_of_pairs(self) -> list[int]:
        """Those that every run was evaluated at, in increasing order."""
        return sorted(set.intersection(*map(_numbers_of_pairs, self.runs)))

    @property
    def longest_in_training(self) -> int:
        """The most pairs of a training row."""
        return int(self._made_of["data.lengths"].strip("[]").split(",")[1])

    @property
    def bits_of_row(self) -> float:
        """Of the values in a row of the most pairs, half of the vocabulary being values."""
        return self.numbers_of_pairs[-1] * math.log2(int(self._made_of["data.vocabulary"]) / 2)

    @property
    def _made_of(self) -> dict[str, str]:
        """The values that make the variant, by key."""
        return dict(map(split, variants_of(NAME)[self.variant]))

    def mean(self, metric: str, num_pairs: int) -> Interval:
        """A metric over seeds, at a number of pairs."""
        return mean_interval(self._by_seed(metric, num_pairs))

    def _by_seed(self, metric: str, num_pairs: int) -> list[float]:
        return [run.result["evaluation"][f"length_{num_pairs}"][metric] for run in self.runs]

    @property
    def fullest(self) -> int:
        """The number of pairs of which the state holds most bits."""
        return max(self.numbers_of_pairs, key=lambda pairs: self.mean("bits_recalled", pairs).mean)

    @property
    def bits_recalled(self) -> Interval:
        """Bits recalled of a row, at the number of pairs where they are most."""
        return self.mean("bits_recalled", self.fullest)

    @property
    def bits_of_runs(self) -> list[float]:
        """The same for each seed."""
        return self._by_seed("bits_recalled", self.fullest)

    @property
    def exceeds_its_state(self) -> bool:
        """Whether a run recalls more bits than its state has, which only a fault can explain."""
        return any(
            bits > self.state_bits
            for pairs in self.numbers_of_pairs
            for bits in self._by_seed("bits_recalled", pairs)
        )


def contestants(runs: Sequence[Run]) -> list[Contestant]:
    """All variants whose best trial was run again, in the order of the sweep."""
    return [Contestant(best.variant, best.again) for best in best_trials(NAME, runs, _is_complete)]


def own_runs(runs: Sequence[Run]) -> list[Run]:
    """The trials and all later runs of the variants that have a result."""
    found = {one.variant for one in contestants(runs)}
    return [
        run for run in runs if run.known_as in found and _is_complete(run) and purpose(NAME, run)
    ]


def _is_complete(run: Run) -> bool:
    return run.is_done and bool(_numbers_of_pairs(run))


def _numbers_of_pairs(run: Run) -> set[int]:
    """Those that a run was evaluated at."""
    evaluation = run.result.get("evaluation") or {}
    numbers = {name: re.fullmatch(r"length_(\d+)", name) for name in evaluation}
    return {
        int(match[1])
        for name, match in numbers.items()
        if match and all(isinstance(evaluation[name].get(metric), int | float) for metric in READ)
    }


def best_attention(found: Sequence[Contestant]) -> Contestant | None:
    """The Transformer with the highest accuracy at the most pairs of training, if there is one."""
    return max(
        (one for one in found if one.is_transformer),
        key=lambda one: one.mean("accuracy", one.longest_in_training).mean,
        default=None,
    )
