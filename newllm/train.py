"""Train one experiment: `python -m newllm.train [GROUP=OPTION] [KEY=VALUE] ...`; see `--help`."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import seed_everything
from omegaconf import DictConfig

from newllm.config.build import ConfigFault, conf_directory
from newllm.config.command_line import command_line_faults
from newllm.config.composed import check_settings, composed_faults
from newllm.experiment import build_experiment
from newllm.recording import Diverged
from newllm.result import log_best, measured, record_start
from newllm.runs import RunConflict, RunDirectory, load_weights
from newllm.summary import print_banner, print_result

# What Lightning says at every start although no user of this program can act on it.
LIGHTNING_CHATTER = (".*does not have many workers.*", ".*LeafSpec.*", ".*lr_scheduler.step.*")

failed_jobs: list[Path] = []  # of this process; they make it end with exit code 1
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
# Flags that Hydra answers by itself: help, or the configuration instead of a run.
HYDRA_QUESTIONS = {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "--version"}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the run has put its things in order."""


def train(config: DictConfig, folder: Path, experiment_name: str | None = None) -> dict[str, Any]:
    """Run one experiment in a folder of its own: build, fit, test, record.

    Returns:
        What `result.json` holds; nothing for `plan=true`.

    Raises:
        ConfigFault: the configuration cannot be built; nothing was written.
        Diverged: the loss is no longer finite; the run's result says so.
    """
    check_settings(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    seed_everything(config.seed, verbose=False)
    experiment = build_experiment(config, folder)
    print_banner(experiment)
    if config.plan:
        print(f"only planned; the training would take {experiment.estimated_seconds():.0f} s here")
        return {}
    run = RunDirectory(folder)
    started = time.monotonic()
    result: dict[str, Any] = {}
    try:
        record_start(run, experiment, experiment_name)
        experiment.trainer.fit(experiment.module, datamodule=experiment.data)
        load_weights(experiment.model, run.checkpoints / "best.ckpt")
        if len(experiment.data.split("test")):
            experiment.trainer.test(experiment.module, datamodule=experiment.data, verbose=False)
        result = {"status": "done"}
    except Diverged as error:
        result = {"status": "diverged", "error": str(error)}
        raise
    except SystemExit as end:  # Lightning's answer to Ctrl-C
        raise Interrupted(f"interrupted; what was done lies in {folder}") from end
    except Exception as error:
        result = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        seconds = round(time.monotonic() - started, 1)
        result = run.record(**result, seconds=seconds, **measured(experiment))
        run.release()
    log_best(experiment)
    print_result(result, experiment, folder)
    return result


@hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name="config")
def run_job(config: DictConfig) -> float:
    """One job, single or of a multirun; returns the best validation loss, for sweepers.

    What a user can mend ends in its message, and the jobs after it go on.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    name = hydra_config.runtime.choices["experiment"]
    try:
        if faults := composed_faults(config, hydra_config.overrides.task):
            raise ConfigFault(faults)
        result = train(config, folder, None if name == "none" else name)
        return float(result.get("best_val_loss", math.nan))
    except (ConfigFault, Diverged, RunConflict) as error:
        return fail(folder, str(error))
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        reason = (str(error).strip() or "no message").splitlines()[0]
        return fail(folder, f"{type(error).__name__}: {reason} (HYDRA_FULL_ERROR=1 shows where)")
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def fail(folder: Path, reason: str) -> float:
    """Say why a job failed and remember that it did; its loss is infinite."""
    print(reason, file=sys.stderr)
    failed_jobs.append(folder)
    return math.inf


def main() -> None:
    """The command line: all its faults at once, else the run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for message in LIGHTNING_CHATTER:
        warnings.filterwarnings("ignore", message)
    arguments = sys.argv[1:]
    asks_hydra = any(word.partition("=")[0] in HYDRA_QUESTIONS for word in arguments)
    if not asks_hydra and (faults := command_line_faults(arguments)):
        print("\n".join(faults), file=sys.stderr)
        sys.exit(1)
    try:
        run_job()
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted before the training started", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(1 if failed_jobs else 0)


if __name__ == "__main__":
    main()
