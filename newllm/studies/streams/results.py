"""Training on streams (`sweep=streams`): the loss by distance to the start of a document.

Documents of different lengths differ, and so do their beginnings and ends. The loss of counts of
three tokens on the same targets is therefore subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from newllm.config.naming import split
from newllm.config.study_file import variants_of
from newllm.runs.gathering import Run
from newllm.statistics.intervals import Interval, mean_interval

NAME = "streams"
REFERENCE = "trigram"
# Variants are called MODEL_STATE.
STATES = {"kept": "kept", "zero": "initial", "drawn": "of another row"}
TIMES = (1, 16, 64)  # distances that are reported, in training windows


@dataclass(frozen=True)
class Contestant:
    """A model, trained with windows that start from one kind of state.

    Attributes:
        variant: its name.
        runs: one for each seed, none of which diverged.
    """

    variant: str
    runs: Sequence[Run]

    @property
    def model(self) -> str:
        """A key of `newllm.reporting.models.MODELS`."""
        return self.variant.partition("_")[0]

    @property
    def state(self) -> str:
        """A key of `STATES`: the state that a training window starts from."""
        return self.variant.partition("_")[2]

    @property
    def window(self) -> int:
        """Tokens of a training window."""
        return int(dict(map(split, variants_of(NAME)[self.variant]))["data.tbptt_steps"])

    @cached_property
    def places_K(self) -> np.ndarray:
        """The distance to the start of a document of each bin, in tokens."""
        return np.array(self.runs[0].result["places_by_position"])

    @cached_property
    def excess_RK(self) -> np.ndarray:
        """The loss of each run in each bin, minus that of the reference, in nats."""
        return np.array(
            [
                np.subtract(
                    run.result["val_loss_by_position"],
                    run.result["references_by_position"][REFERENCE],
                )
                for run in self.runs
            ]
        )

    def excess(self, times: int) -> Interval:
        """The mean over seeds, within half an octave of a distance in training windows."""
        return mean_interval(self._excess(times).tolist())

    def change(self, times: int) -> Interval:
        """By how much it is higher than at the end of the training window."""
        return mean_interval((self._excess(times) - self._excess(1)).tolist())

    def _excess(self, times: int) -> np.ndarray:
        octaves_K = np.abs(np.log2(self.places_K / (times * self.window)))
        return self.excess_RK[:, octaves_K <= 0.5].mean(1)

    @property
    def bits(self) -> Interval:
        """Bits per byte of all validation documents."""
        return mean_interval([run.result["bits_per_byte"]["validation"]["value"]
                              for run in self.runs])  # fmt: skip


def contestants(runs: Sequence[Run]) -> list[Contestant]:
    """All variants with a complete run, in the order of the sweep."""
    own = own_runs(runs)
    found = [
        Contestant(variant, [run for run in own if run.known_as == variant])
        for variant in variants_of(NAME)
    ]
    return [one for one in found if one.runs]


def own_runs(runs: Sequence[Run]) -> list[Run]:
    """The complete runs of its variants, unchanged, on the documents of the first of them."""
    variants = variants_of(NAME)
    found = [
        run
        for run in runs
        if run.study == NAME and run.known_as in variants and not run.choices and _is_complete(run)
    ]
    places = [run.result["places_by_position"] for run in found[:1]]
    return [run for run in found if [run.result["places_by_position"]] == places]


def _is_complete(run: Run) -> bool:
    """Whether it has the losses by position of documents that are long enough."""
    places = run.result.get("places_by_position") or [0]
    losses = [
        run.result.get("val_loss_by_position") or [],
        (run.result.get("references_by_position") or {}).get(REFERENCE) or [],
    ]
    bits = ((run.result.get("bits_per_byte") or {}).get("validation") or {}).get("value")
    return (
        run.is_done
        and math.isfinite(places[-1] or math.nan)
        and places[-1] >= TIMES[-1] * Contestant(str(run.known_as), [run]).window
        and all(len(loss) == len(places) and None not in loss for loss in losses)
        and isinstance(bits, float)
    )
