"""The processes of a sweep: one for each group of jobs, so that none can end the others."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.live import Live

from newllm.runs.directory import read_result
from newllm.sweeps.jobs import Job, Outcome, duration, read_outcome
from newllm.sweeps.policy import record_failure, run_job_of_sweep
from newllm.training.processes import when_parent_ends, without_interrupts
from newllm.training.run import quiet_lightning
from newllm.training.together import Together
from newllm.training.turns import Turns


class Workers:
    """The processes of a sweep and its progress line."""

    def __init__(self, groups: Sequence[tuple[Job, ...]], size: int) -> None:
        self.outcomes: dict[Job, Outcome] = {}
        self._waiting, self._size, self._num_jobs = list(groups), size, sum(map(len, groups))
        self._threads = max(1, torch.get_num_threads() // size)
        self._running: dict[BaseProcess, tuple[Job, ...]] = {}
        self._started = time.monotonic()
        self._context = multiprocessing.get_context("forkserver")
        # Its children then start with all of torch and Lightning loaded.
        self._context.set_forkserver_preload(["newllm.training.run"])
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._live = Live(console=self._console, get_renderable=self._line, refresh_per_second=2)

    def __enter__(self) -> Workers:
        if self._console.is_terminal and self._waiting:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def run(self) -> None:
        """Run all jobs."""
        self._fill()
        while self._running:
            connection.wait([process.sentinel for process in self._running])
            ended = self._gather()
            self._fill()
            if not self._console.is_terminal:
                for job in ended:
                    self._console.print(f"{self._line()}; {job.label}: {self.outcomes[job].status}")

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._size:
            self._start(self._waiting.pop(0))

    def stop(self) -> None:
        """Ask all running jobs to save a checkpoint, and wait for them."""
        for process in self._running:
            process.terminate()
        for process in list(self._running):
            process.join()
        self._gather(interrupted=True)

    def _start(self, group: tuple[Job, ...]) -> None:
        if not self._running:
            self._start_server()
        assignments = [
            Assignment(OmegaConf.to_yaml(job.config), job.folder, job.overrides) for job in group
        ]
        process = self._context.Process(
            target=work, args=(assignments, self._threads), name=group[0].label
        )
        process.start()
        self._running[process] = group

    @staticmethod
    def _start_server() -> None:
        """Start the fork server, which Ctrl-C must not end."""
        with without_interrupts():
            forkserver.ensure_running()

    def _gather(self, interrupted: bool = False) -> list[Job]:
        """Record the outcomes of the jobs that have ended; returns these jobs."""
        ended = []
        for process in [process for process in self._running if process.exitcode is not None]:
            for job in self._running.pop(process):
                if not interrupted:
                    _record_end(job, process.exitcode or 0)
                self.outcomes[job] = read_outcome(job)
                ended.append(job)
        return ended

    def _line(self) -> str:
        outcomes = dict(self.outcomes)  # the display asks from a thread of its own
        ended = [outcome.status for outcome in outcomes.values()]
        done = ended.count("done")
        num_running = sum(map(len, list(self._running.values())))
        line = f"{done} of {self._num_jobs} done, {num_running} running"
        if others := len(ended) - done:
            line += f", {others} failed"
        if 0 < len(ended) < self._num_jobs:
            elapsed = time.monotonic() - self._started
            left = elapsed * (self._num_jobs - len(ended)) / len(ended)
            line += f", about {duration(left)} left"
        return line


class Assignment(NamedTuple):
    """A job as a process gets it."""

    content: str  # its configuration
    folder: Path
    overrides: Sequence[str]

    def log(self) -> int:
        """Open `log.txt` in its folder, for the output of the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def run(self) -> int:
        """Run it; returns the exit code."""
        config = OmegaConf.create(self.content)
        assert isinstance(config, DictConfig)
        try:
            run_job_of_sweep(config, self.folder, self.overrides, self.folder.parents[1])
        except KeyboardInterrupt as error:
            print(error, file=sys.stderr)
            return 1
        return 0


def work(assignments: Sequence[Assignment], threads: int) -> None:
    """Run jobs in this process, each with its output in its log."""
    # When the process of the sweep is gone, save a checkpoint and end.
    when_parent_ends(partial(os.kill, os.getpid(), signal.SIGTERM))
    # Ctrl-C reaches all processes; this one waits to be asked by the sweep's own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = assignments[0].log()
    for stream in (1, 2):
        os.dup2(log, stream)
    torch.set_num_threads(threads)
    quiet_lightning()
    sys.exit(assignments[0].run() if len(assignments) == 1 else run_together(assignments))


def run_together(assignments: Sequence[Assignment]) -> int:
    """Run jobs that differ in their seed alone, in threads that take turns; returns the exit code.

    After SIGTERM, each takes its current step and writes a checkpoint; a second one does not wait.
    """
    turns = Turns(Together().answer)
    codes: list[int] = []

    def run(assignment: Assignment) -> None:
        code = 1
        try:
            if not turns.is_asked_to_stop:
                code = assignment.run()
        except Exception:
            traceback.print_exc()
        finally:
            codes.append(code)

    def stop(*_: object) -> None:
        if turns.is_asked_to_stop:
            os._exit(1)
        turns.is_asked_to_stop = True

    for assignment in assignments:
        turns.add(partial(run, assignment), assignment.log())
    signal.signal(signal.SIGTERM, stop)
    turns.run()
    return max(codes)


def _record_end(job: Job, exit_code: int) -> None:
    """Record the failure of a process that was killed."""
    with contextlib.suppress(ValueError):
        if read_result(job.folder)["status"] not in ("interrupted", "running"):
            return
    reason = f"ended with exit code {exit_code}"
    if exit_code < 0:
        reason = f"killed by {signal.Signals(-exit_code).name}"
    record_failure(job.folder, reason, job.config.seed, job.overrides)
