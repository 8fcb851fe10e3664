"""Lightning's trainer for a run, and the checks of its arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from newllm.config.build import ConfigFault, instantiate
from newllm.config.precision import precision_name
from newllm.training.clock import AUTO, Clock, batches_of_epoch
from newllm.training.sharding import Sharded

# Arguments of Lightning's trainer that the run decides on, and what to set instead.
DECIDED = {
    **dict.fromkeys(
        (
            *("barebones", "enable_autolog_hparams", "enable_model_summary", "inference_mode"),
            *("limit_predict_batches", "log_every_n_steps", "model_registry", "num_nodes"),
            *("num_sanity_val_steps", "reload_dataloaders_every_n_epochs", "sync_batchnorm"),
            "use_distributed_sampler",
        ),
        "is set by the run; remove it",
    ),
    "callbacks": "use '+callbacks.NAME={_target_: ...}'",
    "default_root_dir": "use hydra.run.dir=FOLDER",
    "enable_checkpointing": "best.ckpt is always written; keep_last=true keeps last.ckpt too",
    "enable_progress_bar": "use callbacks.progress=null",
    "fast_dev_run": "use trainer=smoke",
    "gradient_clip_algorithm": "gradients are clipped by their norm; use recipe.gradient_clip",
    "gradient_clip_val": "use recipe.gradient_clip=[[0,NORM]]",
    "limit_test_batches": "use data.test_sentences=N",
    "limit_val_batches": "use data.validation_sentences=N, which limits the references as well",
    "logger": "use logger=NAME, or '+logger.NAME={_target_: ...}'",
    "max_time": "a time limit is not reproducible; use trainer.max_epochs",
    "overfit_batches": "use data.train_sentences=N",
    "plugins": "use trainer.precision",
}
SHARDED = "fsdp"
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def build_trainer(
    config: DictConfig,
    folder: Path,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    clock: Clock | None = None,
) -> Trainer:
    """The trainer of a run.

    Raises:
        ValueError: an argument that the run decides on, or that no run is possible with.
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
    if chosen.strategy == SHARDED:
        arguments["strategy"] = Sharded()
    if name := chosen.get("profiler"):
        arguments["profiler"] = PROFILERS[name](dirpath=folder, filename="profile")
    # A run starts its processes itself, even in a job of a cluster, where Lightning would look for
    # others and write events in the first one alone.
    rank_zero_only.rank = 0  # type: ignore[attr-defined]
    try:
        trainer: Trainer = instantiate(chosen, config.trusted_packages, **arguments)
    except ConfigFault:
        raise
    except Exception as error:  # of a dozen kinds, for an accelerator that is missing
        asked = f"trainer.accelerator={chosen.accelerator}"
        place = "trainer" if chosen.accelerator == "cpu" else asked
        raise ValueError(f"{place}: {' '.join(str(error).split())}") from error
    if (trainer.max_epochs or 0) < 1:
        raise ValueError(f"trainer.max_epochs={trainer.max_epochs}: must be at least 1")
    strategies = ("auto",) if trainer.num_devices == 1 else ("auto", "ddp", SHARDED)
    if chosen.strategy not in strategies:
        raise ValueError(
            f"trainer.devices={chosen.devices} trainer.strategy={chosen.strategy}: must be auto, "
            f"or ddp or {SHARDED} for several devices"
        )
    averaging = (WeightAveraging, StochasticWeightAveraging)
    if chosen.strategy == SHARDED and any(isinstance(each, averaging) for each in callbacks):
        # It would swap weights that are whole, while those that are saved are the shards.
        raise ValueError(f"trainer.strategy={SHARDED}: takes no callback that averages weights")
    return trainer


def _faults(chosen: DictConfig, callbacks: Sequence[Callback]) -> Iterator[str]:
    """Arguments that would be ignored, or with which a run could not be repeated or planned."""
    for name in chosen:
        if name in DECIDED:
            yield f"trainer.{name}: {DECIDED[name]}"
    if (profiler := chosen.get("profiler")) not in (None, *PROFILERS):
        yield f"trainer.profiler={profiler}: no such option; options: {', '.join(PROFILERS)}"
    interval = chosen.get("val_check_interval")
    is_number = type(interval) is int and interval > 0
    is_share = isinstance(interval, float) and 0 < interval <= 1
    if not (interval in (None, AUTO) or is_number or is_share):
        yield (
            f"trainer.val_check_interval={interval}: must be a number of batches, a share of an "
            "epoch above 0 and up to 1.0, or auto; an interval in seconds is not reproducible"
        )
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
        yield (
            "callbacks: GradientAccumulationScheduler changes the number of steps; use "
            "+trainer.accumulate_grad_batches=N"
        )


def planned_steps(trainer: Trainer, num_batches: int) -> int:
    """Optimizer steps of a run that nothing stops early.

    Args:
        trainer: of the run.
        num_batches: in the training data.

    Raises:
        ValueError: the run would end before its first validation, which selects the best weights.
    """
    num_batches = batches_of_epoch(num_batches, trainer.limit_train_batches)
    if num_batches < 1:
        limit = trainer.limit_train_batches
        raise ValueError(f"trainer.limit_train_batches={limit}: leaves no batch; increase it")
    num_epochs, batches_per_step = trainer.max_epochs or 0, trainer.accumulate_grad_batches
    if batches_per_step > num_batches:
        raise ValueError(
            f"trainer.accumulate_grad_batches={batches_per_step}: an epoch has {num_batches} "
            "batches; lower it"
        )
    interval, every_n_epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if isinstance(interval, int) and every_n_epochs is not None and interval > num_batches:
        raise ValueError(
            f"trainer.val_check_interval={interval}: an epoch has {num_batches} batches; lower it, "
            "or add +trainer.check_val_every_n_epoch=null to count across epochs"
        )
    first = interval if isinstance(interval, int) else max(1, int(num_batches * interval))
    first += num_batches * ((every_n_epochs or 1) - 1)
    last = num_batches * num_epochs
    num_steps = math.ceil(num_batches / batches_per_step) * num_epochs
    if trainer.max_steps >= 0:
        last = min(last, trainer.max_steps * batches_per_step)
        num_steps = min(num_steps, trainer.max_steps)
    if first > last:
        raise ValueError(
            f"trainer: the run ends after {last} batches, before its first validation after "
            f"{first}; raise trainer.max_epochs or trainer.max_steps, or limit the epoch: "
            "trainer.limit_train_batches=N"
        )
    return num_steps
