"""Data-parallel training: a run in several processes, each with a device and a share of each batch.

The first process owns the run. It alone writes, prints, and decides when a checkpoint is due. The
others take the same steps on their rows of the same batches; what they write goes to a temporary
folder. Gradients are averaged by Lightning's strategy `ddp`. Every process evaluates all rows, so
all of them come to the same decisions.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf

from newllm.runs.identity import WATCHING

NEVER = 2**62  # steps
# Read by Lightning's LightningEnvironment.
RANK, ADDRESS, PORT = VARIABLES = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Processes:
    """The processes of a run, one for each of `trainer.devices`; this one is the first.

    Within its context, Lightning's trainer takes itself for the first of them. At the end, the
    others are stopped if they still run.
    """

    def __init__(self, config: DictConfig) -> None:
        devices = config.trainer.devices
        self.number = devices if isinstance(devices, int) else 1
        self._others: list[BaseProcess] = []
        self._environment = {name: os.environ.get(name) for name in VARIABLES}
        self._port = str(find_free_network_port()) if self.number > 1 else ""
        self._threads = max(1, torch.get_num_threads() // max(1, self.number))

    def __enter__(self) -> Processes:
        if self.number > 1:
            torch.set_num_threads(self._threads)
            _join_group(0, self._port)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._others:
            process.kill()
            process.join()
        if self.number > 1:
            for name, value in self._environment.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()

    def start(self, config: DictConfig, last: Path | None, best: Path) -> None:
        """Start the other processes.

        Args:
            config: of the run, with all sizes filled in.
            last: the checkpoint to resume from.
            best: where the best weights will be.
        """
        context = multiprocessing.get_context("spawn")
        content = OmegaConf.to_yaml(config)
        for rank in range(1, self.number):
            arguments = (content, rank, self._port, self._threads, last, best)
            process = context.Process(target=_follow, args=arguments, name=f"process {rank}")
            process.start()
            self._others.append(process)

    def join(self) -> None:
        """Wait for the other processes."""
        for process in self._others:
            process.join()


def _join_group(rank: int, port: str) -> None:
    os.environ.update({RANK: str(rank), ADDRESS: "127.0.0.1", PORT: port})


def _follow(
    content: str, rank: int, port: str, threads: int, last: Path | None, best: Path
) -> None:
    """Take part in a run as one of its other processes."""
    from newllm.training.estimate import warm_up
    from newllm.training.experiment import build_experiment
    from newllm.training.run import fit_and_test, in_a_line, quiet_lightning

    _end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # the first process decides
        signal.signal(number, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    quiet_lightning()
    warnings.simplefilter("ignore")  # the first process has told them
    _join_group(rank, port)
    torch.set_num_threads(threads)
    config = OmegaConf.create(content)
    assert isinstance(config, DictConfig)
    config.logger, config.keep_last, config.checkpoint_steps = {}, False, NEVER
    config.callbacks = {
        name: node
        for name, node in config.callbacks.items()
        if node and not str(node.get("_target_", "")).startswith(WATCHING)
    }
    seed_everything(config.seed, verbose=False)
    try:
        with TemporaryDirectory() as folder:
            experiment = build_experiment(config, Path(folder))
            callbacks: list[Callback] = getattr(experiment.trainer, "callbacks")  # noqa: B009
            callbacks.append(OwnNoise(config.seed, rank))
            warm_up(experiment)
            fit_and_test(experiment, last, best)
    except Exception as error:
        print(f"process {rank}: {in_a_line(error)}", file=sys.stderr)
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
        torch.manual_seed(hash((self._seed, self._rank, trainer.current_epoch, batch_idx)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
