"""Lightning's trainer as a run needs it: what the run itself decides on, and what a user may."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from newllm.config.build import ConfigFault, instantiate
from newllm.training.clock import AUTO, Clock, batches_of_epoch

# Arguments of Lightning's trainer that the run decides on, and what to set instead.
DECIDED = {
    "barebones": "a run always writes its tables; use callbacks=none logger=none",
    "callbacks": "use '+callbacks.NAME={_target_: ...}'",
    "default_root_dir": "use hydra.run.dir=FOLDER",
    "enable_autolog_hparams": "hyper-parameters are always logged; use logger=none",
    "enable_checkpointing": "best.ckpt is always written; keep_last=true keeps last.ckpt too",
    "enable_model_summary": "use plan=true",
    "enable_progress_bar": "use callbacks.progress=null",
    "fast_dev_run": "use trainer=smoke",
    "gradient_clip_algorithm": "gradients are clipped by their norm; use recipe.gradient_clip",
    "gradient_clip_val": "use recipe.gradient_clip=[[0,NORM]]",
    "inference_mode": "validation never computes gradients",
    "limit_predict_batches": "a run makes no predictions",
    "limit_test_batches": "use data.test_sentences=N",
    "limit_val_batches": "use data.validation_sentences=N, which limits the references as well",
    "log_every_n_steps": "every step is logged",
    "logger": "use logger=NAME, or '+logger.NAME={_target_: ...}'",
    "max_time": "a time limit is not reproducible; use trainer.max_epochs",
    "model_registry": "best.ckpt is written to the run directory",
    "num_nodes": "a run is one process on one device",
    "num_sanity_val_steps": "everything is built and checked before the first step",
    "overfit_batches": "use data.train_sentences=N",
    "plugins": "use trainer.precision",
    "reload_dataloaders_every_n_epochs": "each epoch has its own order",
    "sync_batchnorm": "a run is one process on one device",
    "use_distributed_sampler": "a run is one process on one device",
}
# The full names of precisions, by all that Lightning takes for the same thing.
PRECISIONS = {
    **dict.fromkeys(("None", "32", "32-true"), "32-true"),
    **dict.fromkeys(("64", "64-true"), "64-true"),
    **dict.fromkeys(("bf16", "bf16-mixed"), "bf16-mixed"),
}
# Those that would not train as they say.
UNFIT_PRECISIONS = {
    **dict.fromkeys(
        ("16", "16-mixed"),
        "float16 needs gradient scaling, which clipping and grad/norm do not support",
    ),
    **dict.fromkeys(("16-true", "bf16-true"), "16-bit weights lose small updates"),
}
PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


def build_trainer(
    config: DictConfig,
    folder: Path,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    clock: Clock | None = None,
) -> Trainer:
    """The trainer of a run.

    Args:
        config: the whole configuration, of which the node `trainer` is built.
        folder: of the run.
        callbacks: all of them.
        loggers: all of them.
        clock: what follows from the data.

    Raises:
        ValueError: an argument that the run decides on, or one that makes no run.
    """
    chosen = config.trainer
    if faults := list(_faults(chosen, callbacks)):
        raise ConfigFault(faults)
    arguments: dict[str, Any] = {
        "default_root_dir": str(folder),
        "callbacks": list(callbacks),
        "logger": list(loggers),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "plugins": [LightningEnvironment()],
        "precision": precision_name(chosen.precision),
        **(clock.arguments if clock else {}),
    }
    if chosen.get("profiler") is not None:
        arguments["profiler"] = _profiler(chosen.profiler, folder)
    trainer = _make(config, arguments)
    if (trainer.max_epochs or 0) < 1:
        raise ValueError(f"trainer.max_epochs={trainer.max_epochs}: must be at least 1")
    if trainer.num_devices != 1 or not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise ValueError(
            f"trainer.devices={chosen.devices} trainer.strategy={chosen.strategy}: "
            "a run is one process on one device; leave them at 1 and auto"
        )
    return trainer


def _faults(chosen: DictConfig, callbacks: Sequence[Callback]) -> Iterator[str]:
    """What would be ignored, or make a run that could not be repeated or planned."""
    for name in chosen:
        if name in DECIDED:
            yield f"trainer.{name}: {DECIDED[name]}"
    interval = chosen.get("val_check_interval")
    if not isinstance(interval, int | float | None) and interval != AUTO:
        yield (
            f"trainer.val_check_interval={interval}: must be a number of batches, a share of an "
            "epoch or auto; a validation interval in seconds is not reproducible"
        )
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if (value := chosen.get(name)) is not None and value < 1:
            yield f"trainer.{name}={value}: must be at least 1"
    if isinstance(interval, int | float) and (
        interval <= 0 or (isinstance(interval, float) and interval > 1)
    ):
        yield (
            f"trainer.val_check_interval={interval}: must be a number of batches, or a share of an "
            "epoch above 0 and up to 1.0"
        )
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
        yield (
            "callbacks: GradientAccumulationScheduler changes the number of steps; use "
            "+trainer.accumulate_grad_batches=N"
        )


def _make(config: DictConfig, arguments: dict[str, Any]) -> Trainer:
    """The trainer of a run that is one process, whatever cluster it is on.

    Left alone, Lightning looks for the others of a cluster's job, and a process that the cluster
    gave a number above 0 writes no events.
    """
    rank_zero_only.rank = 0  # type: ignore[attr-defined]
    try:
        trainer: Trainer = instantiate(config.trainer, config.trusted_packages, **arguments)
    except ConfigFault:
        raise
    except Exception as error:  # it raises a dozen kinds, for an accelerator that is not there
        asked = f"trainer.accelerator={config.trainer.accelerator}"
        place = "trainer" if config.trainer.accelerator == "cpu" else asked
        raise ValueError(f"{place}: {' '.join(str(error).split())}") from error
    return trainer


def precision_name(setting: Any) -> str:
    """The full name of a precision: `bf16-mixed` for `bf16`.

    Raises:
        ValueError: the precision is unknown, or would not train as it says.
    """
    name = str(setting)
    if name in PRECISIONS:
        return PRECISIONS[name]
    reason = UNFIT_PRECISIONS.get(name, "not supported")
    instead = "bf16-mixed" if "16" in name else "one of: 32-true, bf16-mixed, 64-true"
    raise ValueError(f"trainer.precision={setting}: {reason}; choose {instead}")


def precision_warning(setting: Any, device: torch.device) -> str | None:
    """What a user should know before waiting for a run; None if nothing."""
    if precision_name(setting) == "bf16-mixed" and device.type == "cpu":
        return (
            "trainer.precision=bf16-mixed is up to ten times slower than 32-true on a CPU, "
            "since the native code supports only float32 and float64"
        )
    return None


def _profiler(name: str, folder: Path) -> Profiler:
    """One that leaves its table, `fit-profile.txt`, in the run's folder."""
    if name not in PROFILERS:
        raise ValueError(f"trainer.profiler={name}: choose {', '.join(PROFILERS)}")
    return PROFILERS[name](dirpath=folder, filename="profile")


def planned_steps(trainer: Trainer, num_batches: int) -> int:
    """Optimizer steps, if nothing stops the run early.

    Args:
        trainer: of the run.
        num_batches: in the training data.

    Raises:
        ValueError: the run would end without a validation, by which its best weights are found.
    """
    num_batches = batches_of_epoch(num_batches, trainer.limit_train_batches)
    if num_batches < 1:
        limit = trainer.limit_train_batches
        raise ValueError(f"trainer.limit_train_batches={limit}: leaves no batch; increase it")
    _check_validation(trainer, num_batches)
    planned = -(-num_batches // trainer.accumulate_grad_batches) * (trainer.max_epochs or 0)
    return planned if trainer.max_steps < 0 else min(planned, trainer.max_steps)


def _check_validation(trainer: Trainer, num_batches: int) -> None:
    """Whether a run of epochs with so many batches comes to its first validation."""
    interval, every_n_epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if isinstance(interval, int) and every_n_epochs is not None and interval > num_batches:
        raise ValueError(
            f"trainer.val_check_interval={interval}: an epoch has {num_batches} batches; lower it, "
            "or add +trainer.check_val_every_n_epoch=null to count across epochs"
        )
    first = interval if isinstance(interval, int) else max(1, int(num_batches * interval))
    first += num_batches * ((every_n_epochs or 1) - 1)
    last = num_batches * (trainer.max_epochs or 0)
    if trainer.max_steps >= 0:
        last = min(last, trainer.max_steps * trainer.accumulate_grad_batches)
    if first > last:
        raise ValueError(
            f"trainer: the run ends after {last} batches, before its first validation after "
            f"{first}; raise trainer.max_epochs or trainer.max_steps, or limit the epoch: "
            "trainer.limit_train_batches=N"
        )
