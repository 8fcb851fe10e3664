"""Data-parallel training: a run in several processes, each with a device and a share of each batch.

The first process owns the run. It alone writes, prints, and decides when a checkpoint is due. The
others take the same steps on their rows of the same batches; what they write goes to a temporary
folder. Gradients are averaged by Lightning's strategy `ddp`. Every process evaluates all rows, so
all of them come to the same decisions.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import DictConfig, OmegaConf

from newllm.runs.identity import WATCHING
from newllm.training.history import Diverged
from newllm.training.trainer import SHARDED

NEVER = 2**62  # steps
GRACE = 60.0  # seconds for the first process to notice that another is gone
# Read by Lightning's LightningEnvironment.
RANK, ADDRESS, PORT = VARIABLES = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Processes:
    """The processes of a run, one for each of `trainer.devices`; this one is the first.

    Within its context, Lightning's trainer takes itself for the first of them, and the cores are
    divided. At the end, the others are stopped if they still run.
    """

    def __init__(self, config: DictConfig) -> None:
        self.number = max(1, config.trainer.devices)
        self._others: dict[BaseProcess, Connection] = {}

    def __enter__(self) -> Processes:
        if self.number > 1:
            self._environment = {name: os.environ.get(name) for name in VARIABLES}
            self._threads = torch.get_num_threads()
            self._port = str(find_free_network_port())
            self._folder = TemporaryDirectory()
            torch.set_num_threads(self._share_of_threads)
            _join_group(0, self._port)
        return self

    def __exit__(self, *_: object) -> None:
        if self.number == 1:
            return
        for process in self._others:
            process.kill()
            process.join()
        self._others = {}
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        self._folder.cleanup()
        torch.set_num_threads(self._threads)
        for name, value in self._environment.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

    @property
    def _share_of_threads(self) -> int:
        return max(1, self._threads // self.number)

    def start(self, config: DictConfig, last: Path | None, best: Path) -> None:
        """Start the other processes and wait until they are ready.

        Args:
            config: of the run, with all sizes filled in.
            last: the checkpoint to resume from.
            best: where the best weights will be.

        Raises:
            RuntimeError: one of them ended before.
        """
        if self.number == 1:
            return
        context = multiprocessing.get_context("spawn")
        content, threads = OmegaConf.to_yaml(config), self._share_of_threads
        with without_interrupts():
            for rank in range(1, self.number):
                here, there = context.Pipe(duplex=False)
                folder = Path(self._folder.name, str(rank))
                arguments = (there, content, rank, self._port, threads, folder, last, best)
                process: BaseProcess = context.Process(
                    target=_follow, args=arguments, name=f"process {rank}"
                )
                process.start()
                there.close()
                self._others[process] = here
        for process, pipe in self._others.items():
            connection.wait([pipe, process.sentinel])
            if not self._is_ready(pipe):
                process.join()
                raise RuntimeError(self._end_of(process))
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def _is_ready(pipe: Connection) -> bool:
        try:
            return pipe.recv() is None
        except EOFError:
            return False

    def _end_of(self, process: BaseProcess) -> str:
        """How a process ended; it has told its reason itself, unless it was killed."""
        if (code := process.exitcode or 0) < 0:
            return f"{process.name} was killed by {signal.Signals(-code).name}"
        return f"{process.name} failed"

    def _watch(self) -> None:
        """End this process if another is gone, and it has not noticed by itself.

        What waits for the others on a device cannot be interrupted.
        """
        running = set(self._others)
        while running:
            connection.wait([process.sentinel for process in running])
            ended = {process for process in running if process.exitcode is not None}
            running -= ended
            if lost := [process for process in ended if process.exitcode]:
                time.sleep(GRACE)
                if lost[0] in self._others:
                    print(f"{self._end_of(lost[0])}; the run can be resumed", file=sys.stderr)
                    os._exit(1)

    @property
    def failure(self) -> str | None:
        """How one of the other processes failed; None if none did."""
        lost = [process for process in self._others if process.exitcode]
        return self._end_of(lost[0]) if lost else None

    def join(self) -> None:
        """Wait for the other processes, which have nothing left to do."""
        for process in self._others:
            process.join()
        self._others = {}


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C, which reaches all of them, never interrupts.

    It is blocked, which they inherit, and not ignored: one that comes meanwhile would be lost.
    """
    resource_tracker.ensure_running()  # which would unblock it when the first process starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _join_group(rank: int, port: str) -> None:
    os.environ.update({RANK: str(rank), ADDRESS: "127.0.0.1", PORT: port})


def _follow(
    pipe: Connection,
    content: str,
    rank: int,
    port: str,
    threads: int,
    folder: Path,
    last: Path | None,
    best: Path,
) -> None:
    """Take part in a run as one of its other processes."""
    from newllm.training.estimate import warm_up
    from newllm.training.experiment import build_experiment
    from newllm.training.run import fit_and_test, in_a_line, quiet_lightning

    when_parent_ends(partial(os._exit, 1))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the first process decides
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    quiet_lightning()
    warnings.simplefilter("ignore")  # the first process shows the same ones
    _join_group(rank, port)
    torch.set_num_threads(threads)
    config = OmegaConf.create(content)
    assert isinstance(config, DictConfig)
    config.logger, config.checkpoint_steps = {}, NEVER
    config.keep_last = config.keep_last and config.trainer.strategy == SHARDED  # takes all
    config.callbacks = {
        name: node
        for name, node in config.callbacks.items()
        if node and not str(node.get("_target_", "")).startswith(WATCHING)
    }
    seed_everything(config.seed, verbose=False)
    try:
        folder.mkdir()
        experiment = build_experiment(config, folder)
        experiment.trainer.loggers = [DummyLogger()]  # for callbacks that need one
        callbacks: list[Callback] = getattr(experiment.trainer, "callbacks")  # noqa: B009
        callbacks.append(OwnNoise(config.seed, rank))
        warm_up(experiment)
        pipe.send(None)
        fit_and_test(experiment, last, best)
    except Diverged:
        os._exit(0)  # as the first process, which says so
    except Exception as error:
        print(f"process {rank}: {in_a_line(error)}", file=sys.stderr, flush=True)
        os._exit(1)  # without waiting for the others


class OwnNoise(Callback):
    """Gives a process random numbers of its own, which depend on the step alone.

    All processes start from the same seed, and their dropout masks would be the same. The state of
    a generator that depends on the step needs no place in a checkpoint.
    """

    def __init__(self, seed: int, rank: int) -> None:
        self._seed, self._rank = seed, rank

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        place = self._seed, self._rank, trainer.current_epoch, batch_idx
        (seed,) = np.random.SeedSequence(place).generate_state(1)
        torch.manual_seed(int(seed))


def when_parent_ends(act: Callable[[], object]) -> None:
    """Call something in a thread of this process when the process that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        act()

    threading.Thread(target=watch, daemon=True).start()
