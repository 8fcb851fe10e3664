"""One run, from its configuration to its result."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import sys
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
from newllm.config.trust import TRUSTED
from newllm.data.source import TEST
from newllm.runs.directory import ENDS, RunConflict, RunDirectory, load_weights
from newllm.training.estimate import estimate, warm_up
from newllm.training.experiment import Experiment, build_experiment
from newllm.training.history import Diverged
from newllm.training.processes import Processes
from newllm.training.result import draw_positions, log_best, measured, predicted, record_start
from newllm.training.summary import print_banner, print_result
from newllm.training.together import RunScorer, reason_to_be_alone
from newllm.training.turns import Member, Stopped, current_member, own_seconds

# Messages of Lightning at every start that no user of this program can act on.
LIGHTNING_CHATTER = (
    *(".*does not have many workers.*", ".*LeafSpec.*", ".*lr_scheduler.step.*"),
    ".*sync_dist=True.*",  # all processes log the same
)

MAX_MESSAGE = 500  # characters of another library's exception


class Interrupted(KeyboardInterrupt):
    """The run was interrupted and can resume."""


def train(
    config: DictConfig, folder: Path, overrides: Sequence[str] = (), goes_on: bool = False
) -> dict[str, Any]:
    """Run one experiment: build, fit, test, record.

    Args:
        config: as composed.
        folder: of the run.
        overrides: what was chosen, for the record.
        goes_on: whether the folder may hold an interrupted run, which then resumes.

    Returns:
        The content of `result.json`; with `plan=true`, only `estimated_seconds`.

    Raises:
        ConfigFault: the configuration cannot be built; nothing was written.
        RunConflict: the folder belongs to another run.
        Diverged: the loss is no longer finite.
    """
    check_settings(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    with Processes(config) as processes:
        return _train(config, folder, overrides, goes_on, processes)


def _train(
    config: DictConfig,
    folder: Path,
    overrides: Sequence[str],
    goes_on: bool,
    processes: Processes,
) -> dict[str, Any]:
    seed_everything(config.seed, verbose=False)
    experiment = build_experiment(config, folder)
    print_banner(experiment)
    if config.plan:
        training, validation = estimate(experiment)
        print(
            f"not trained (plan=true); estimated time {training + validation:.0f} s here, "
            f"{validation:.0f} s of it for validation"
        )
        return {"estimated_seconds": training + validation}
    try:
        experiment.source.write()
    except ValueError as error:
        raise ConfigFault([str(error)]) from error
    run = RunDirectory(folder, goes_on)
    try:
        run.check_last_checkpoint()
        if run.status in ENDS:  # another sweep was faster
            return run.result
        result = _run(experiment, run, overrides, processes)
    finally:
        run.release()
    draw_positions(result, experiment, folder)
    log_best(result, experiment)
    print_result(result, experiment, folder)
    return result


def _run(
    experiment: Experiment, run: RunDirectory, overrides: Sequence[str], processes: Processes
) -> dict[str, Any]:
    """Fit and test, and record how it ended."""
    config = experiment.config
    before, started = run.seconds_before, own_seconds()
    result: dict[str, Any] = {}
    try:
        run.record(status="running")
        record_start(run, experiment, overrides)
        warm_up(experiment)
        last, best = run.last_checkpoint, run.checkpoints / "best.ckpt"
        processes.start(config, last, best)
        started = own_seconds()
        result = fit_and_test(experiment, last, best)
        processes.join()
        result |= predicted(experiment) | {"status": "done"}
    except Diverged as error:
        result = {"status": "diverged", "error": str(error)}
        raise
    except (SystemExit, Stopped) as end:  # the first is Lightning's response to Ctrl-C
        command = [program("python"), "-m", "newllm.train", f"{RUN}={run.path}"]
        if config.trusted_packages:
            command.append(f"{TRUSTED}=[{','.join(config.trusted_packages)}]")
        raise Interrupted(
            f"interrupted; the run so far is in {run.path}; resume it with: {shlex.join(command)}"
        ) from end
    except Exception as error:
        result = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        if failure := processes.failure:  # which only looked like a broken connection from here
            result["error"] = failure
            raise RuntimeError(failure) from error
        raise
    finally:
        seconds = round(before + own_seconds() - started, 1)
        result = run.record(**result, seconds=seconds, **measured(experiment))
        if result["status"] in ENDS and not config.keep_last:
            run.remove_last_checkpoint()
    return result


def fit_and_test(experiment: Experiment, last: Path | None, best: Path) -> dict[str, Any]:
    """Train, from the last checkpoint if there is one, and evaluate the best weights."""
    trainer, module, data = experiment.trainer, experiment.module, experiment.data
    if (member := current_member()) is not None:
        _join(experiment, member)
    trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    trainer.strategy.barrier()  # the first process has written the best weights
    load_weights(experiment.model, best)
    if not data.test_names:
        return {}
    trainer.test(module, datamodule=data, verbose=False)
    evaluation = {name: scores.metrics() for name, scores in module.scores.items()}
    return {"evaluation": evaluation, "test_loss": evaluation.get(TEST, {}).get("loss")}


def _join(experiment: Experiment, member: Member) -> None:
    """Let a run be computed together with the others of its process, if that is of use."""
    device = experiment.trainer.strategy.root_device
    with experiment.trainer.precision_plugin.forward_context():
        reason = reason_to_be_alone(experiment.model, device)
    if reason:
        print(f"seeds_at_once: trained one after another; {reason}", file=sys.stderr)
    else:
        experiment.module.together = RunScorer(experiment.model, member)


def attempt(
    config: DictConfig, folder: Path, overrides: Sequence[str], goes_on: bool
) -> tuple[dict[str, Any], str | None]:
    """Train, and print a failure as one line.

    Returns:
        The result of `train` and None; or a `best_val_loss` that is infinite after a divergence and
        NaN after a failure, and the reason.
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
                folder.parent.rmdir()  # the folder of the day, if it is empty
    print(reason, file=sys.stderr)
    return {"best_val_loss": loss}, reason


def in_a_line(error: Exception) -> str:
    """An exception as one line."""
    message = " ".join(str(error).split()) or "no message"
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE]} ..."
    return f"{type(error).__name__}: {message}"


def quiet_lightning() -> None:
    """Silence Lightning's routine messages."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in LIGHTNING_CHATTER:
        warnings.filterwarnings("ignore", message)
