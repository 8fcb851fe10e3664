"""Variants of a study that have a trial for each learning rate, and the runs of the best trial.

The trial with the lowest validation loss is run again in the second stages of the study, with
other seeds or other data, and only these runs are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from newllm.config.naming import TRIAL
from newllm.config.study_file import stage_of, sweeper_of, variants_of
from newllm.runs.directory import ENDS
from newllm.runs.gathering import Run


@dataclass(frozen=True)
class BestTrial:
    """The best of a variant's trials.

    Attributes:
        variant: its name.
        trial: the run with the lowest validation loss.
        again: the runs of this trial in the second stages.
    """

    variant: str
    trial: Run
    again: Sequence[Run]


def purpose(study: str, run: Run) -> str | None:
    """The purpose of a run in a study: `trial`, `again` for a second stage, or None for others."""
    chosen = run.choices
    if run.study != study or run.status not in ENDS or chosen.pop(TRIAL, None) is None:
        return None
    if not chosen and str(run.result["seed"]) == sweeper_of(study)["params"]["seed"]:
        return "trial"
    return "again" if stage_of(study, chosen) else None


def best_trials(
    study: str, runs: Sequence[Run], can_use: Callable[[Run], bool] = lambda run: True
) -> list[BestTrial]:
    """The best trials of all variants that were run again, in the order of the sweep.

    Args:
        study: its name.
        runs: any runs.
        can_use: whether a run has what is reported.
    """
    found = []
    for variant in variants_of(study):
        own = [run for run in runs if run.known_as == variant and can_use(run)]
        trials = [run for run in own if purpose(study, run) == "trial" and run.is_done]
        if trials:
            best = min(trials, key=lambda run: run.result["best_val_loss"])
            label = best.choices[TRIAL]
            again = [run for run in own if purpose(study, run) == "again"]
            again = [run for run in again if run.choices[TRIAL] == label]
            found += [BestTrial(variant, best, again)] * bool(again)
    return found
