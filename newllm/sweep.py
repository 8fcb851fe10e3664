"""A sweep: its jobs are checked, done side by side, and told of in a table.

A job is done once: what ended before is left alone, what was interrupted goes on from its last
checkpoint. Whatever happens to a job stands in its `result.json`, and its output in `log.txt`.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from newllm.config.build import ConfigFault
from newllm.config.composed import check_settings, composed_faults
from newllm.config.naming import without_seed
from newllm.jobs import Job, Outcome, duration, read_outcome, side_by_side_seconds
from newllm.runs import RunConflict, has_ended, move_aside
from newllm.team import Team


def sweep(jobs: Sequence[Job], top: Path) -> list[float]:
    """Run all jobs; returns the best validation loss of each.

    It is infinite where a job diverged, as it would again, and no number where one failed.

    Raises:
        SystemExit: a job cannot be composed, or its folder holds another run; none was started.
        KeyboardInterrupt: after all running jobs have written down where they are.
    """
    _check(jobs, top)
    if jobs[0].config.plan:
        return _plan_only(jobs)
    outcomes: dict[Job, Outcome] = {}
    waiting = []
    for job in jobs:
        if has_ended(job.folder, job.config):
            outcomes[job] = read_outcome(job, "skipped")
        else:
            waiting.append(job)
    waiting.sort(key=lambda job: -job.cost)
    interrupted = False
    # All jobs decide, not only those that wait: a run must go on with as many threads as it had.
    with Team(waiting, _side_by_side(jobs[0].config, len(jobs))) as team:
        try:
            team.run()
        except KeyboardInterrupt:
            interrupted = True
            team.stop()
    outcomes |= team.outcomes
    _print_table(jobs, outcomes, top)
    if interrupted:
        raise KeyboardInterrupt("interrupted; the same command goes on")
    if any(outcome.status not in ("skipped", "done") for outcome in outcomes.values()):
        failed.append(top)
    return [_loss(outcomes[job]) for job in jobs]


def _loss(outcome: Outcome) -> float:
    if outcome.status in ("skipped", "done"):
        return outcome.loss
    return math.inf if outcome.status == "diverged" else math.nan


failed: list[Path] = []  # sweeps and jobs of this process that did not end well


def _plan_only(jobs: Sequence[Job]) -> list[float]:
    from newllm.estimate import planned
    from newllm.train import attempt  # this module is what train.py runs its sweeps with

    size = _side_by_side(jobs[0].config, len(jobs))
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // size))  # as each job will have
    waiting = [job for job in jobs if not _is_done(job)]
    planned.clear()
    for job in waiting:
        print(f"--- {job.label}")
        _, reason = attempt(job.config, job.folder, job.overrides, goes_on=True)
        if reason:
            failed.append(job.folder)
    torch.set_num_threads(threads)
    done = f", {len(jobs) - len(waiting)} done before" if len(waiting) < len(jobs) else ""
    total = duration(side_by_side_seconds(planned, size))
    print(f"--- {len(waiting)} jobs to do{done}: about {total}, {size} at once")
    return [math.nan] * len(jobs)


def _is_done(job: Job) -> bool:
    with contextlib.suppress(RunConflict):  # a run that was made otherwise is none of these
        return has_ended(job.folder, job.config)
    return False


def _check(jobs: Sequence[Job], top: Path) -> None:
    """Find all faults before the first job starts; with overwrite=true, make room."""
    faults: dict[str, str] = {}
    folders: dict[Path, Job] = {}
    checked: set[tuple[str, ...]] = set()
    for job in jobs:
        choices = without_seed(job.overrides)  # what they are faulty in, all seeds are
        is_new = choices not in checked
        checked.add(choices)
        found = composed_faults(job.config, job.overrides) if is_new else []
        try:
            check_settings(job.config)
        except ConfigFault as error:
            found += str(error).splitlines()
        for fault in found:
            faults.setdefault(fault, job.label)
        if folders.setdefault(job.folder, job) is not job:
            faults.setdefault(f"{job.folder}: two jobs have this place", job.label)
    if not faults and not jobs[0].config.plan:
        for job in jobs:
            try:
                has_ended(job.folder, job.config)
            except RunConflict as error:
                if job.config.overwrite:
                    print(f"{job.label}: moved to {move_aside(job.folder, top)}", file=sys.stderr)
                else:
                    faults.setdefault(str(error), job.label)
    if faults:
        # Hydra would show where an exception came from, which helps nobody here.
        print("\n".join(f"{label}: {fault}" for fault, label in faults.items()), file=sys.stderr)
        sys.exit(1)


def _side_by_side(config: DictConfig, num_jobs: int) -> int:
    """How many jobs run at once: as many as was asked for, else one for each core."""
    return max(1, min(num_jobs, config.jobs or torch.get_num_threads()))


def _print_table(jobs: Sequence[Job], outcomes: dict[Job, Outcome], top: Path) -> None:
    table = Table(box=None)
    for heading in ("job", "status", "best val loss", "seconds", "reason"):
        right = heading in ("best val loss", "seconds")
        table.add_column(heading, justify="right" if right else "left")
    for job in jobs:
        outcome = outcomes.get(job, Outcome("not started", math.inf, 0.0, ""))
        status = "done before" if outcome.status == "skipped" else outcome.status
        loss = f"{outcome.loss:.4f}" if math.isfinite(outcome.loss) else "-"
        table.add_row(job.label, status, loss, f"{outcome.seconds:.0f}", outcome.reason)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 250
    console.print(table)
    console.print(f"all of it lies in {top}; a page of it: python -m newllm.report {top}")
