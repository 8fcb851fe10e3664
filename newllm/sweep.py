"""The jobs of a sweep side by side, each in a process of its own, so that none can end the others.

A job is done once: what ended before is left alone, what was interrupted goes on from its last
checkpoint. Whatever happens to a job stands in its `result.json`, and its output in `log.txt`.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.live import Live
from rich.table import Table

from newllm.config.build import ConfigFault
from newllm.config.composed import check_settings, composed_faults
from newllm.config.naming import run_folder
from newllm.data.corpora import NUM_SENTENCES
from newllm.runs import ENDS, RunConflict, RunDirectory, has_ended, move_aside, read_result

TEXT_SENTENCES = 10_000  # a guess, for the order of jobs only


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep."""

    config: DictConfig
    overrides: tuple[str, ...]
    experiment: str | None
    folder: Path

    @classmethod
    def plan(
        cls, config: DictConfig, overrides: tuple[str, ...], experiment: str, top: Path
    ) -> Job:
        """The job of some overrides, in its folder below `top`."""
        folder = top / run_folder(overrides, config.seed)
        return cls(config, overrides, None if experiment == "none" else experiment, folder)

    @property
    def label(self) -> str:
        """Such as `phase1_baseline seed=1`."""
        return f"{self.folder.parent.name} {self.folder.name}"

    @property
    def cost(self) -> float:
        """Roughly proportional to its time."""
        model = self.config.model
        width = model.get("hidden_dim") or model.get("embedding_dim") or 1
        sentences = NUM_SENTENCES.get(self.config.data.corpus, 0) or (
            TEXT_SENTENCES if self.config.data.corpus == "text" else 100
        )
        return float(width**2 * model.num_layers * sentences * self.config.trainer.max_epochs)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `skipped` if it had ended before, else the status of its result."""

    status: str
    loss: float
    seconds: float
    reason: str


def sweep(jobs: Sequence[Job], top: Path) -> list[float]:
    """Run all jobs; returns the best validation loss of each, infinite where there is none.

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
            outcomes[job] = _outcome(job, "skipped")
        else:
            waiting.append(job)
    waiting.sort(key=lambda job: -job.cost)
    interrupted = False
    # All jobs decide, not only those that wait: a run must go on with as many threads as it had.
    with _Team(waiting, _side_by_side(jobs[0].config, len(jobs))) as team:
        try:
            team.run()
        except KeyboardInterrupt:
            interrupted = True
            team.stop()
    outcomes |= team.outcomes
    _print_table(jobs, outcomes, top)
    if interrupted:
        raise KeyboardInterrupt("interrupted; the same command goes on")
    if any(outcomes[job].status not in ("skipped", "done") for job in jobs):
        failed.append(top)
    return [outcomes[job].loss for job in jobs]


failed: list[Path] = []  # sweeps and jobs of this process that did not end well


def _plan_only(jobs: Sequence[Job]) -> list[float]:
    from newllm.train import train  # this module is what train.py runs its sweeps with

    for job in jobs:
        print(f"--- {job.label}")
        train(job.config, job.folder, job.experiment)
    return [math.nan] * len(jobs)


def _check(jobs: Sequence[Job], top: Path) -> None:
    """Find all faults before the first job starts; with overwrite=true, make room."""
    faults: dict[str, str] = {}
    folders: dict[Path, Job] = {}
    for job in jobs:
        found = composed_faults(job.config, job.overrides)
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


class _Team:
    """The processes of a sweep, and the line that tells how far it is."""

    def __init__(self, jobs: Sequence[Job], size: int) -> None:
        self.outcomes: dict[Job, Outcome] = {}
        self._waiting, self._size, self._num_jobs = list(jobs), size, len(jobs)
        self._threads = max(1, torch.get_num_threads() // size)
        self._running: dict[BaseProcess, Job] = {}
        self._total_cost = sum(job.cost for job in jobs)
        self._started = time.monotonic()
        self._context = multiprocessing.get_context("forkserver")
        # Its children then start with all of torch and Lightning loaded.
        self._context.set_forkserver_preload(["newllm.experiment", "newllm.summary"])
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._live = Live(console=self._console, get_renderable=self._line, refresh_per_second=2)

    def __enter__(self) -> _Team:
        if self._console.is_terminal and self._waiting:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def run(self) -> None:
        """Start jobs and see them end, until all have."""
        while self._waiting or self._running:
            while self._waiting and len(self._running) < self._size:
                self._start(self._waiting.pop(0))
            connection.wait([process.sentinel for process in self._running])
            self._gather()

    def stop(self) -> None:
        """Ask all running jobs to write down where they are, and wait for that."""
        for process in self._running:
            process.terminate()
        for process in list(self._running):
            process.join()
        self._gather(interrupted=True)

    def _start(self, job: Job) -> None:
        if not self._running:
            self._start_server()
        content = OmegaConf.to_yaml(job.config)
        arguments = (content, job.folder, job.experiment, self._threads)
        process = self._context.Process(target=work, args=arguments, name=job.label)
        process.start()
        self._running[process] = job

    @staticmethod
    def _start_server() -> None:
        """Start what forks the processes; Ctrl-C, which reaches it too, must not end it."""
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        forkserver.ensure_running()
        signal.signal(signal.SIGINT, handler)

    def _gather(self, interrupted: bool = False) -> None:
        for process in [process for process in self._running if process.exitcode is not None]:
            job = self._running.pop(process)
            if not interrupted:
                _record_end(job, process.exitcode or 0)
            self.outcomes[job] = outcome = _outcome(job)
            if not self._console.is_terminal:
                self._console.print(f"{self._line()}; {job.label}: {outcome.status}")

    def _line(self) -> str:
        outcomes = dict(self.outcomes)  # the display asks from a thread of its own
        ended = [outcome.status for outcome in outcomes.values()]
        done = ended.count("done")
        line = f"{done} of {self._num_jobs} done, {len(self._running)} running"
        if others := len(ended) - done:
            line += f", {others} failed"
        cost = sum(job.cost for job in outcomes)
        if 0 < cost < self._total_cost:
            elapsed = time.monotonic() - self._started
            left = elapsed * (self._total_cost - cost) / cost
            line += f", about {_duration(left)} left"
        return line


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def work(content: str, folder: Path, experiment: str | None, threads: int) -> None:
    """A job's own process: no output but to its log, no more threads than its share."""
    from newllm.train import attempt, quiet_lightning

    _end_with_parent()
    # Ctrl-C reaches all processes; this one waits to be asked by the sweep's own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    torch.set_num_threads(threads)
    quiet_lightning()
    config = OmegaConf.create(content)
    assert isinstance(config, DictConfig)
    try:
        _, reason = attempt(config, folder, experiment, goes_on=True)
    except KeyboardInterrupt as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    if reason:
        _record_failure(folder, reason, seed=config.seed, experiment=experiment)
        sys.exit(1)


def _end_with_parent() -> None:
    """Let this process write down where it is and end when the sweep's own process is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _record_end(job: Job, exit_code: int) -> None:
    """What a process that was killed could not write down itself."""
    with contextlib.suppress(ValueError):
        if read_result(job.folder)["status"] not in ("interrupted", "running"):
            return
    reason = f"ended with exit code {exit_code}"
    if exit_code < 0:
        reason = f"killed by {signal.Signals(-exit_code).name}"
    _record_failure(job.folder, reason, seed=job.config.seed, experiment=job.experiment)


def _record_failure(folder: Path, reason: str, **fields: Any) -> None:
    """Note in the result why a run failed, unless it says so already or belongs to another."""
    with contextlib.suppress(RunConflict):
        run = RunDirectory(folder, goes_on=True)
        if run.status not in (*ENDS, "failed"):
            run.record(**fields, status="failed", error=reason)
        run.release()


def _outcome(job: Job, status: str | None = None) -> Outcome:
    try:
        result = read_result(job.folder)
    except ValueError as error:
        return Outcome("not started", math.inf, 0.0, str(error))
    loss = result.get("best_val_loss")
    return Outcome(
        status=status if status and result["status"] == "done" else result["status"],
        loss=math.inf if loss is None else loss,
        seconds=result.get("seconds") or 0.0,
        reason=(result.get("error") or "").partition("\n")[0],
    )


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
