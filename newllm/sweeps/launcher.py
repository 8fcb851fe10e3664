"""Hydra's launcher `local`: the jobs of a sweep side by side on this machine.

A thin shell, because every command imports it; the work is done by `newllm.sweeps.sweep`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from newllm.config.build import ConfigFault
from newllm.config.loading import loading
from newllm.config.naming import LARGEST_SEED, run_name, split
from newllm.config.overrides import Composer


class LocalLauncher(Launcher):
    """A process for each job, several at once; what ended before is not done again."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        setup_globals()
        configs = _compose(self.hydra_context.config_loader, self.config, job_overrides)
        with loading():
            from newllm.sweeps.jobs import Job
            from newllm.sweeps.sweep import sweep

        top = Path(self.config.hydra.sweep.dir)
        jobs = [
            Job.below(config, tuple(overrides), top)
            for config, overrides in zip(configs, job_overrides, strict=True)
        ]
        losses = sweep(jobs, top, self.config.hydra.runtime.choices["sweep"])
        returns = []
        for config, overrides, loss in zip(configs, job_overrides, losses, strict=True):
            done = JobReturn(overrides=list(overrides), cfg=config, status=JobStatus.COMPLETED)
            done.return_value = loss
            returns.append(done)
        return returns


def _compose(
    loader: ConfigLoader, config: DictConfig, job_overrides: Sequence[Sequence[str]]
) -> list[DictConfig]:
    """The configuration of each job; those that differ in their seed alone are composed once.

    Raises:
        SystemExit: some have faults, which were told.
    """
    composer = Composer(loader, config.hydra.job.config_name)
    composed: dict[tuple[str, ...], DictConfig] = {}
    configs: list[DictConfig] = []
    faults: dict[str, str] = {}
    for overrides in job_overrides:
        seed = dict(map(split, overrides)).get("seed", "")
        is_plain = seed.isdecimal() and int(seed) <= LARGEST_SEED
        choices = tuple(line for line in overrides if not is_plain or split(line)[0] != "seed")
        try:
            if choices not in composed:
                composed[choices] = composer.job([*config.hydra.overrides.hydra, *overrides])
        except ConfigFault as error:
            label = run_name(overrides)
            faults |= {line: label for line in str(error).splitlines() if line not in faults}
            continue
        own = copy.deepcopy(composed[choices])
        own.seed = int(seed) if is_plain else own.seed
        configs.append(own)
    if faults:
        # Hydra would show the traceback of an exception.
        print("\n".join(f"{label}: {fault}" for fault, label in faults.items()), file=sys.stderr)
        sys.exit(1)
    return configs
