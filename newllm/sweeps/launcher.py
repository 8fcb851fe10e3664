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
from omegaconf import DictConfig, open_dict


class LocalLauncher(Launcher):
    """A process for each job, several at once; what ended before is not done again."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from newllm.sweeps.jobs import Job
        from newllm.sweeps.sweep import sweep

        setup_globals()
        loader = self.hydra_context.config_loader
        configs = _compose(loader, self.config, job_overrides)
        top = Path(self.config.hydra.sweep.dir)
        jobs = []
        for config, overrides in zip(configs, job_overrides, strict=True):
            with open_dict(config):
                del config["hydra"]
            # The folder is told by the overrides alone, so it needs none of Hydra's own values.
            jobs.append(Job.plan(config, tuple(overrides), top))
        losses = sweep(jobs, top)
        returns = []
        for config, overrides, loss in zip(configs, job_overrides, losses, strict=True):
            done = JobReturn(overrides=list(overrides), cfg=config, status=JobStatus.COMPLETED)
            done.return_value = loss
            returns.append(done)
        return returns


def _compose(
    loader: ConfigLoader, config: DictConfig, job_overrides: Sequence[Sequence[str]]
) -> list[DictConfig]:
    """The configuration of each job; those that differ in their seed alone are composed once."""
    from newllm.config.naming import without_seed

    composed: dict[tuple[str, ...], DictConfig] = {}
    configs = []
    for overrides in job_overrides:
        seeds = [line.partition("=")[2] for line in overrides if line.startswith("seed=")]
        if len(seeds) != 1 or not seeds[0].isdecimal():
            configs.append(_composed(loader, config, overrides))
            continue
        choices = without_seed(overrides)
        if choices not in composed:
            composed[choices] = _composed(loader, config, overrides)
        own = copy.deepcopy(composed[choices])
        own.seed = int(seeds[0])
        configs.append(own)
    return configs


def _composed(loader: ConfigLoader, config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a job.

    Raises:
        SystemExit: Hydra cannot compose it, as a line says.
    """
    from newllm.config.naming import run_name

    try:
        return loader.load_sweep_config(config, list(overrides))
    except Exception as error:  # it raises a dozen kinds
        print(f"{run_name(overrides)}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
