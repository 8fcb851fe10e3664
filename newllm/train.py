"""Train one experiment: `python -m newllm.train [GROUP=OPTION] [KEY=VALUE] ...`; see `--help`.

What needs torch is imported where it is used, so that help and the faults of a command line come
first.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log, run_job
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from newllm.config.arguments import INTERRUPTED, ends_with_its_reader
from newllm.config.build import ConfigFault
from newllm.config.command_line import asks_hydra, check_shown, composed, resumed_run
from newllm.config.composed import composed_faults
from newllm.config.composing import conf_directory
from newllm.config.loading import loading
from newllm.config.settling import settled
from newllm.sweeps.plugins import register_plugins


@ends_with_its_reader
def main() -> None:
    """The command line: an answer, a run that goes on, or what is composed from it."""
    arguments = sys.argv[1:]
    register_plugins()
    try:
        if asks_hydra(arguments):
            check_shown(arguments)
            hydra.main(str(conf_directory()), "config", version_base="1.3")(train)()
        elif run := resumed_run(arguments):
            sys.exit(_go_on(*run))
        else:
            with composed(arguments) as config:
                _start(config)
    except (ConfigFault, HydraException) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted before training started", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _go_on(folder: Path, trusted_packages: list[str]) -> int:
    with loading():
        from newllm.runs.resume import resume
        from newllm.training.run import attempt

    _keep_quiet()
    return resume(folder, trusted_packages, attempt)


def _start(config: DictConfig) -> Any:
    """Run or sweep as Hydra does, which would compose the configuration again."""
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    callbacks, name = Callbacks(config), config.hydra.job.config_name
    context = HydraContext(GlobalHydra.instance().config_loader(), callbacks)
    if config.hydra.mode == RunMode.MULTIRUN:
        callbacks.on_multirun_start(config=config, config_name=name)
        sweeper = Plugins.instance().instantiate_sweeper(
            config=config, hydra_context=context, task_function=train
        )
        sweeper.sweep(list(config.hydra.overrides.task))
        return callbacks.on_multirun_end(config=config, config_name=name)
    callbacks.on_run_start(config=config, config_name=name)
    job = run_job(train, config, "hydra.run.dir", None, context)
    callbacks.on_run_end(config=config, config_name=name, job_return=job)
    return job.return_value  # or what the job raised


def train(config: DictConfig) -> float | None:
    """One job, single or by another launcher than `local`; its best validation loss, for sweepers.

    Raises:
        SystemExit: a single run did not end well.
    """
    with loading():
        from newllm.sweeps.policy import run_job_of_sweep
        from newllm.training.run import attempt

    _keep_quiet()
    job = HydraConfig.get()
    folder, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
    if job.mode == RunMode.MULTIRUN:
        if faults := composed_faults(config, overrides):
            print("\n".join(faults), file=sys.stderr)
            return math.nan
        config = settled(config, overrides)
        return run_job_of_sweep(config, folder, overrides, Path(job.sweep.dir))
    loss: float | None = attempt(config, folder, overrides, goes_on=False)[0].get("best_val_loss")
    if loss is not None and not math.isfinite(loss):
        sys.exit(1)
    return loss


def _keep_quiet() -> None:
    """No word of Lightning's that nobody can act on, and a line for what ends a thread."""
    from newllm.training.run import in_a_line, quiet_lightning

    def tell(args: threading.ExceptHookArgs) -> None:  # such as TensorBoard's, on a full disk
        if isinstance(args.exc_value, Exception):
            print(in_a_line(args.exc_value), file=sys.stderr)

    quiet_lightning()  # this may be a process of a launcher's own
    if not os.environ.get("HYDRA_FULL_ERROR"):
        threading.excepthook = tell


if __name__ == "__main__":
    main()
