"""Train one experiment: `python -m newllm.train [GROUP=OPTION] [KEY=VALUE] ...`; see `--help`."""

from __future__ import annotations

import math
import os
import sys
import threading
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from newllm.config.arguments import ends_with_its_reader
from newllm.config.build import ConfigFault
from newllm.config.command_line import command_line_faults
from newllm.config.composed import composed_faults
from newllm.config.composing import conf_directory
from newllm.config.leftovers import without_leftovers
from newllm.config.naming import register_resolvers
from newllm.runs.directory import RunConflict
from newllm.runs.resume import RUN, resume
from newllm.sweeps.plugins import register_plugins
from newllm.sweeps.policy import run_job_of_sweep
from newllm.training.run import attempt, in_a_line, quiet_lightning

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


@hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name="config")
def run_job(config: DictConfig) -> float | None:
    """One job, single or by another launcher than `local`; its best validation loss, for sweepers.

    Raises:
        SystemExit: a single run did not end well.
    """
    quiet_lightning()  # this may be a process of a launcher's own
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    overrides = list(hydra_config.overrides.task)
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    faults = composed_faults(config, overrides)
    config = without_leftovers(config, overrides)
    if faults:
        print("\n".join(faults), file=sys.stderr)
        loss: float | None = math.nan
    elif in_sweep:
        loss = run_job_of_sweep(config, folder, overrides, Path(hydra_config.sweep.dir))
    else:
        loss = attempt(config, folder, overrides, goes_on=False)[0].get("best_val_loss")
    if not in_sweep and loss is not None and not math.isfinite(loss):
        sys.exit(1)
    return loss


def _tell_of_thread(args: threading.ExceptHookArgs) -> None:
    """A line for what ended a thread, such as TensorBoard's on a full disk."""
    if isinstance(args.exc_value, Exception):
        print(in_a_line(args.exc_value), file=sys.stderr)


@ends_with_its_reader
def main() -> None:
    """The command line: all its faults at once, else the run."""
    quiet_lightning()
    if not os.environ.get("HYDRA_FULL_ERROR"):
        threading.excepthook = _tell_of_thread
    register_resolvers()
    register_plugins()
    arguments = sys.argv[1:]
    try:
        if any(word.startswith(f"{RUN}=") for word in arguments):
            sys.exit(resume(arguments, attempt))
        if faults := command_line_faults(arguments):
            print("\n".join(faults), file=sys.stderr)
            sys.exit(1)
        run_job()
    except (ConfigFault, RunConflict) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted before the training started", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
