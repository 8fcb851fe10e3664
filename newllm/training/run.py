"""One run from its configuration to its result: build, fit, test, record."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from omegaconf import DictConfig

from newllm.config.arguments import RUN, program
from newllm.config.build import ConfigFault
from newllm.config.composed import check_settings
from newllm.data.source import TEST
from newllm.runs.directory import ENDS, RunConflict, RunDirectory, load_weights
from newllm.runs.resume import TRUSTED
from newllm.training.estimate import estimate, warm_up
from newllm.training.experiment import Experiment, build_experiment, write_data
from newllm.training.history import Diverged
from newllm.training.result import draw_positions, log_best, measured, predicted, record_start
from newllm.training.summary import print_banner, print_result

# What Lightning says at every start although no user of this program can act on it.
LIGHTNING_CHATTER = (".*does not have many workers.*", ".*LeafSpec.*", ".*lr_scheduler.step.*")

LONGEST_MESSAGE = 500  # characters of another library's exception


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
        What `result.json` holds; for `plan=true` `estimated_seconds` alone.

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
        print(
            f"not trained (plan=true); estimated time {expected.total:.0f} s, "
            f"{expected.validation:.0f} s of which are validation"
        )
        return {"estimated_seconds": expected.total}
    write_data(experiment.source)
    run = RunDirectory(folder, goes_on)
    try:
        run.check_last_checkpoint()
    except RunConflict:
        run.release()
        raise
    if run.status in ENDS:  # another sweep was faster
        run.release()
        return run.result
    before, started = run.seconds_before, time.monotonic()
    result: dict[str, Any] = {}
    try:
        run.record(status="running")
        record_start(run, experiment, overrides)
        warm_up(experiment)
        started = time.monotonic()
        result = _fit_and_test(experiment, run) | predicted(experiment) | {"status": "done"}
    except Diverged as error:
        result = {"status": "diverged", "error": str(error)}
        raise
    except SystemExit as end:  # Lightning's answer to Ctrl-C
        command = [program("python"), "-m", "newllm.train", f"{RUN}={folder}"]
        if config.trusted_packages:
            command.append(f"{TRUSTED}=[{','.join(config.trusted_packages)}]")
        raise Interrupted(
            f"interrupted; {folder} contains the run so far; continue with: {shlex.join(command)}"
        ) from end
    except Exception as error:
        result = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        seconds = round(before + time.monotonic() - started, 1)
        result = run.record(**result, seconds=seconds, **measured(experiment))
        if result["status"] in ENDS and not config.keep_last:
            run.remove_last_checkpoint()
        run.release()
    draw_positions(result, experiment, folder)
    log_best(result, experiment)
    print_result(result, experiment, folder)
    return result


def _fit_and_test(experiment: Experiment, run: RunDirectory) -> dict[str, Any]:
    """Train from the last checkpoint on, if there is one, and evaluate the best weights."""
    experiment.trainer.fit(
        experiment.module,
        datamodule=experiment.data,
        ckpt_path=run.last_checkpoint,
        weights_only=True,
    )
    load_weights(experiment.model, run.checkpoints / "best.ckpt")
    if not experiment.data.test_names:
        return {}
    experiment.trainer.test(experiment.module, datamodule=experiment.data, verbose=False)
    found = {name: scores.metrics() for name, scores in experiment.module.scores.items()}
    return {"evaluation": found, "test_loss": found.get(TEST, {}).get("loss")}


def attempt(
    config: DictConfig, folder: Path, overrides: Sequence[str], goes_on: bool
) -> tuple[dict[str, Any], str | None]:
    """Train, and put what a user can mend into a line.

    Returns:
        What `train` returns and None; else a `best_val_loss` of infinity for a run that diverged,
        and of no number for one that failed, and the reason, which is printed too.
    """
    loss = math.nan
    try:
        return train(config, folder, overrides, goes_on), None
    except Diverged as error:
        loss, reason = math.inf, str(error)
    except (ConfigFault, RunConflict) as error:
        reason = str(error)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        reason = f"{in_a_line(error)} (set HYDRA_FULL_ERROR=1 for a traceback)"
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            with contextlib.suppress(OSError):
                folder.parent.rmdir()  # that of the day, if nothing else is in it
    print(reason, file=sys.stderr)
    return {"best_val_loss": loss}, reason


def in_a_line(error: Exception) -> str:
    """An exception in a line."""
    message = " ".join(str(error).split()) or "no message"
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[:LONGEST_MESSAGE]} ..."
    return f"{type(error).__name__}: {message}"


def quiet_lightning() -> None:
    """Keep back what Lightning says at every start and nobody can act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for message in LIGHTNING_CHATTER:
        warnings.filterwarnings("ignore", message)
