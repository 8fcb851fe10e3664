"""Train one experiment: `python -m newllm.train [GROUP=OPTION] [KEY=VALUE] ...`; see `--help`."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import seed_everything
from omegaconf import DictConfig

from newllm.config.build import ConfigFault, conf_directory
from newllm.config.command_line import command_line_faults
from newllm.config.composed import check_settings, composed_faults
from newllm.config.naming import register_resolvers
from newllm.estimate import estimate, planned, warm_up
from newllm.experiment import Experiment, build_experiment
from newllm.recording import Diverged
from newllm.result import draw_positions, log_best, measured, predicted, record_start
from newllm.runs import ENDS, RunConflict, RunDirectory, has_ended, load_weights, read_result
from newllm.summary import print_banner, print_result
from newllm.sweep import failed

# What Lightning says at every start although no user of this program can act on it.
LIGHTNING_CHATTER = (".*does not have many workers.*", ".*LeafSpec.*", ".*lr_scheduler.step.*")

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
# Flags that Hydra answers by itself: help, or the configuration instead of a run.
HYDRA_QUESTIONS = {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "--version"}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the run has put its things in order."""


def train(
    config: DictConfig, folder: Path, overrides: Sequence[str] = (), goes_on: bool = False
) -> dict[str, Any]:
    """Run one experiment in a folder of its own: build, fit, test, record.

    Args:
        config: as composed.
        folder: of the run.
        overrides: what was chosen, for the record.
        goes_on: whether the folder may hold a run that was interrupted, to go on from there.

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
        expected = estimate(experiment)
        planned.append(expected.total)
        print(
            f"only planned; the run would take about {expected.total:.0f} s here, "
            f"{expected.validation:.0f} s of it for validation"
        )
        return {}
    run = RunDirectory(folder, goes_on)
    if run.status in ENDS:  # another sweep was faster
        run.release()
        return run.result
    warm_up(experiment)
    before, started = run.seconds_before, time.monotonic()
    result: dict[str, Any] = {}
    try:
        run.record(status="running")
        record_start(run, experiment, overrides)
        _fit_and_test(experiment, run)
        result = predicted(experiment) | {"status": "done"}
    except Diverged as error:
        result = {"status": "diverged", "error": str(error)}
        raise
    except SystemExit as end:  # Lightning's answer to Ctrl-C
        raise Interrupted(f"interrupted; what was done lies in {folder}") from end
    except Exception as error:
        result = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        seconds = round(before + time.monotonic() - started, 1)
        result = run.record(**result, seconds=seconds, **measured(experiment))
        if result["status"] in ENDS and not config.keep_last:
            run.remove_last_checkpoint()
        run.release()
    log_best(experiment)
    draw_positions(result, experiment, folder)
    print_result(result, experiment, folder)
    return result


def _fit_and_test(experiment: Experiment, run: RunDirectory) -> None:
    """Train from the last checkpoint on, if there is one; test the best."""
    experiment.trainer.fit(
        experiment.module,
        datamodule=experiment.data,
        ckpt_path=run.last_checkpoint,
        weights_only=True,
    )
    load_weights(experiment.model, run.checkpoints / "best.ckpt")
    if experiment.config.test and len(experiment.data.split("test")):
        experiment.trainer.test(experiment.module, datamodule=experiment.data, verbose=False)


def attempt(
    config: DictConfig, folder: Path, overrides: Sequence[str], goes_on: bool
) -> tuple[float, str | None]:
    """Train, and put what a user can mend into a line.

    Returns:
        The best validation loss and None; else infinity for a run that diverged, no number for one
        that failed, and the reason, which is printed too.
    """
    loss = math.nan
    try:
        result = train(config, folder, overrides, goes_on)
        return float(result.get("best_val_loss", math.nan)), None
    except Diverged as error:
        loss, reason = math.inf, str(error)
    except (ConfigFault, RunConflict) as error:
        reason = str(error)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        first_line = (str(error).strip() or "no message").splitlines()[0]
        reason = f"{type(error).__name__}: {first_line} (HYDRA_FULL_ERROR=1 shows where)"
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            with contextlib.suppress(OSError):
                folder.parent.rmdir()  # that of the day, if nothing else is in it
    print(reason, file=sys.stderr)
    return loss, reason


@hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name="config")
def run_job(config: DictConfig) -> float:
    """One job, single or by another launcher than `local`; its best validation loss, for sweepers.

    A job of a sweep is done once and goes on where it was interrupted.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    overrides = list(hydra_config.overrides.task)
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    if faults := composed_faults(config, overrides):
        print("\n".join(faults), file=sys.stderr)
        failed.append(folder)
        return math.nan
    if in_sweep and not config.plan and has_ended(folder, config):
        result = read_result(folder)
        return float(result["best_val_loss"]) if result["status"] == "done" else math.inf
    loss, reason = attempt(config, folder, overrides, in_sweep)
    if reason:
        failed.append(folder)
    return loss


def quiet_lightning() -> None:
    """Keep back what Lightning says at every start and nobody can act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for message in LIGHTNING_CHATTER:
        warnings.filterwarnings("ignore", message)


def main() -> None:
    """The command line: all its faults at once, else the run."""
    quiet_lightning()
    register_resolvers()
    arguments = sys.argv[1:]
    asks_hydra = any(word.partition("=")[0] in HYDRA_QUESTIONS for word in arguments)
    if not asks_hydra and (faults := command_line_faults(arguments)):
        print("\n".join(faults), file=sys.stderr)
        sys.exit(1)
    try:
        run_job()
    except (ConfigFault, RunConflict) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted before the training started", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
