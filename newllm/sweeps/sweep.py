"""A sweep: its jobs are checked, run side by side and reported in a table.

A job that has ended is skipped; one that was interrupted goes on from its last checkpoint. Its
outcome is in its `result.json`, its output in `log.txt`.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.table import Table

from newllm.config.arguments import program
from newllm.reporting.tensorboard import write_bands
from newllm.reporting.terminal import console, print_contests, reasons
from newllm.runs.directory import RunConflict
from newllm.runs.gathering import Run, gather
from newllm.statistics.comparisons import contests
from newllm.statistics.labels import choices_of
from newllm.statistics.variants import Variant, grouped, variants
from newllm.studies import found_studies
from newllm.sweeps.jobs import (
    Job,
    Outcome,
    duration,
    groups_of,
    read_outcome,
    side_by_side_seconds,
)
from newllm.sweeps.policy import has_ended_here
from newllm.sweeps.workers import Workers
from newllm.training.run import attempt, quiet_lightning

MOST_JOBS = 12  # rows of the table; for more jobs only their number is printed


def sweep(jobs: Sequence[Job], top: Path, study: str) -> list[float | None]:
    """Run all jobs; returns the best validation loss of each.

    It is infinite where a job diverged, as it would again, no number where one failed, and None
    where it was only planned.

    Args:
        jobs: in the order in which their variants are compared.
        top: the folder of all sweeps.
        study: that the jobs are of; `none` if they are of no study.

    Raises:
        SystemExit: a job cannot be composed, or its folder holds another run; none was started.
        KeyboardInterrupt: after all running jobs have written down where they are.
    """
    waiting = _waiting(jobs, top)
    if jobs[0].config.plan:
        return _plan_only(jobs, waiting)
    outcomes = {job: read_outcome(job, "skipped") for job in jobs if job not in waiting}
    interrupted = False
    # All jobs decide, not only those that wait: a run must go on with as many threads as it had.
    groups = groups_of(waiting, jobs[0].config.seeds_at_once)
    with Workers(groups, _side_by_side(jobs)) as workers:
        try:
            workers.run()
        except KeyboardInterrupt:
            interrupted = True
            workers.stop()
    outcomes |= workers.outcomes
    _tell(jobs, outcomes, top, study)
    if interrupted:
        raise KeyboardInterrupt("interrupted; run the same command again to continue")
    return [_loss(outcomes[job]) for job in jobs]


def _loss(outcome: Outcome) -> float:
    if outcome.status in ("skipped", "done"):
        return outcome.loss
    return math.inf if outcome.status == "diverged" else math.nan


def _plan_only(jobs: Sequence[Job], waiting: Sequence[Job]) -> list[float | None]:
    """Tell of each job that is not done yet, and how long all of them would take."""
    quiet_lightning()
    size = _side_by_side(jobs)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // size))  # as each job will have
    losses: dict[Job, float | None] = {}
    seconds: dict[Job, float] = {}
    for group in groups_of(waiting, max(1, len(waiting))):  # seeds take equally long
        job, *others = group
        print(f"--- {job.label}" + (f" and {len(others)} more, with other seeds" if others else ""))
        result, _ = attempt(job.config, job.folder, job.overrides, goes_on=True)
        losses |= dict.fromkeys(group, result.get("best_val_loss"))
        seconds |= dict.fromkeys(group, result.get("estimated_seconds", 0.0))
    torch.set_num_threads(threads)
    done = f", {len(jobs) - len(waiting)} done before" if len(waiting) < len(jobs) else ""
    total = duration(side_by_side_seconds([seconds[job] for job in waiting], size))
    print(f"--- {len(waiting)} jobs to do{done}: about {total}, {size} at once")
    return [losses.get(job) for job in jobs]


def _waiting(jobs: Sequence[Job], top: Path) -> list[Job]:
    """The jobs that are not done, after a search for faults; with overwrite=true, make room."""
    faults: dict[str, str] = {}
    folders: dict[Path, Job] = {}
    for job in jobs:
        if folders.setdefault(job.folder, job) is not job:
            faults.setdefault(f"{job.folder}: two jobs have this folder", job.label)
    waiting = []
    for job in jobs if not faults else ():
        try:
            if has_ended_here(job.config, job.folder, top):
                continue
        except RunConflict as error:
            faults.setdefault(str(error), job.label)
        waiting.append(job)
    if faults:
        # Hydra would show the traceback of an exception.
        print("\n".join(f"{label}: {fault}" for fault, label in faults.items()), file=sys.stderr)
        sys.exit(1)
    return waiting


def _side_by_side(jobs: Sequence[Job]) -> int:
    """How many processes run at once: as many as was asked for, else one for each core."""
    config = jobs[0].config
    num_groups = len(groups_of(jobs, config.seeds_at_once))
    affordable = torch.get_num_threads() // max(1, config.trainer.devices)
    return max(1, min(num_groups, config.jobs or affordable))


def _tell(jobs: Sequence[Job], outcomes: dict[Job, Outcome], top: Path, study: str) -> None:
    """How the jobs ended, what came out over seeds, and where to look at it.

    Results and bands are of the variants of these jobs, with all their seeds, including those of
    earlier sweeps. Nothing else below `top` is read or written: other sweeps may be running there.
    """
    out = console()
    folders = dict.fromkeys(job.folder.parent for job in jobs)
    own = {str(job.folder) for job in jobs}
    there = grouped(gather([place for place in folders if any(place.glob("*/result.json"))]))
    runs = [run for group in there if any(run.place in own for run in group) for run in group]
    found = contests(runs)
    if len(jobs) <= MOST_JOBS:
        out.print(_jobs_table(jobs, outcomes, _labels(jobs)))
    else:
        done = sum(outcome.status in ("skipped", "done") for outcome in outcomes.values())
        out.print(f"{done} of {len(jobs)} jobs are done")
        for line in reasons(found):
            out.print(line)
    if len(runs) > 1:
        out.print()
        print_contests(found, out)
    print(f"results: {top}")
    if runs and any(job.config.get("logger") for job in jobs):
        for line in write_bands(runs, top):
            print(line)
        print(f"to see the curves: {program('python')} -m newllm.board {shlex.quote(str(top))}")
    command = [program("python"), "-m", "newllm.report", str(top)]
    # With a baseline, the page compares groups alone and leaves out the parts of studies.
    has_part = study != "none" and any(known.own(runs) for known in found_studies())
    if not has_part and any(len(contest.ranked) > 1 for contest in found):
        command += _baseline_option(found[0].baseline, there)
    print(f"to write a report: {shlex.join(command)}")


def _baseline_option(baseline: Variant, groups: Sequence[Sequence[Run]]) -> list[str]:
    """The same baseline for a report on all runs, if its choices are those of no other group.

    It has its full name, since its label depends on the other runs.
    """
    alike = [group for group in groups if choices_of(group[0]) == baseline.choices]
    return ["--baseline", baseline.full_name] if baseline.choices and len(alike) == 1 else []


def _labels(jobs: Sequence[Job]) -> dict[str, str]:
    """What to call the jobs, by their folders: by what other jobs do not share."""
    runs = [Run(str(job.folder), {"overrides": job.overrides}) for job in jobs]
    return {run.place: variant.label for variant in variants(runs) for run in variant.runs}


def _jobs_table(
    jobs: Sequence[Job], outcomes: dict[Job, Outcome], labels: Mapping[str, str]
) -> Table:
    table = Table(box=None)
    for heading in ("job", "status", "best val loss", "seconds", "reason"):
        right = heading in ("best val loss", "seconds")
        table.add_column(heading, justify="right" if right else "left")
    for job in jobs:
        outcome = outcomes.get(job, Outcome("not started", math.inf, 0.0, ""))
        status = "done before" if outcome.status == "skipped" else outcome.status
        loss = f"{outcome.loss:.4f}" if math.isfinite(outcome.loss) else "-"
        label = f"{labels[str(job.folder)]} seed={job.config.seed}"
        table.add_row(label, status, loss, f"{outcome.seconds:.0f}", outcome.reason)
    return table
