"""What `result.json` and TensorBoard say of a run: before it starts and after it ended."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger

from newllm.analysis.spikes import spikes_of_run
from newllm.callbacks import StepValidation
from newllm.experiment import Experiment
from newllm.runs import RunDirectory, config_hash, git_revision

# TensorBoard's tab "Custom Scalars": what belongs together in one chart.
LAYOUT = {
    "loss": {
        f"train and validation by {unit}": ["Multiline", [f"^train/{tag}$", f"^val/{tag}$"]]
        for unit, tag in (
            ("epoch", "loss"),
            ("step", "loss_by_step"),
            ("tokens seen", "loss_by_tokens"),
        )
    },
    "over seeds": {
        "validation loss": ["Margin", [f"val/loss/{tag}" for tag in ("mean", "low", "high")]]
    },
}


def record_start(run: RunDirectory, experiment: Experiment, experiment_name: str | None) -> None:
    """Write down what is about to run, before it runs."""
    config, data, model = experiment.config, experiment.data, experiment.model
    run.write_config(config)
    data.tokenizer.save(run.path / "tokenizer.json")
    run.record(
        status="running",
        experiment=experiment_name,
        name=experiment.name,
        seed=config.seed,
        corpus=config.data.corpus,
        parameters=sum(weight.numel() for weight in model.parameters()),
        state_bytes=model.state_bytes(data.max_length),
        sees_the_future=model.sees_the_future,
        **dict.fromkeys(("steps", "epochs", "best_val_loss", "best_val_loss_batch_mean")),
        **dict.fromkeys(("best_epoch", "val_accuracy", "test_loss", "spikes")),
        oracle_loss=data.oracle_loss("validation"),
        test_oracle_loss=data.oracle_loss("test"),
        entropy_floor=data.entropy_floor,
        references=experiment.references,
        seconds=None,
        threads=torch.get_num_threads(),
        error=None,
        git_revision=git_revision(),
        data_sha256=data.data_sha256,
        config_hash=config_hash(config),
    )
    for logger in experiment.trainer.loggers:
        logger.log_hyperparams(experiment.hyperparameters, {"hp/best_val_loss": float("nan")})
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars(LAYOUT)


def measured(experiment: Experiment) -> dict[str, Any]:
    """The figures of a run, as far as it came. Each best is the best of its own curve."""
    history, trainer = experiment.history, experiment.trainer
    loss, epoch = history.best("val/loss")
    test_loss = trainer.callback_metrics.get("test/loss")
    looks = [callback.rows for callback in experiment.callbacks(StepValidation)]
    return {
        "steps": trainer.global_step,
        "epochs": len(history.epochs),
        "best_val_loss": loss,
        "best_val_loss_batch_mean": history.best("val/loss_batch_mean")[0],
        "best_epoch": epoch,
        "val_accuracy": None if epoch is None else history.epochs[epoch - 1]["val/accuracy"],
        "test_loss": None if test_loss is None else test_loss.item(),
        "spikes": spikes_of_run(history.epochs, history.steps, looks[0] if looks else []),
    }


def log_best(experiment: Experiment) -> None:
    """Fill in the figure that TensorBoard's HParams tab compares runs by."""
    best, _ = experiment.history.best("val/loss")
    assert best is not None
    spikes = "\n".join(
        f"- {series}: from {spike['onset']:g}, peak {spike['height']:.3f} at {spike['peak']:g}, "
        f"{spike['ratio']:.2f} times the level before"
        for series, found in measured(experiment)["spikes"].items()
        for spike in found
    )
    for logger in experiment.trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("spikes", spikes or "none", experiment.trainer.global_step)
        logger.log_metrics({"hp/best_val_loss": best}, step=experiment.trainer.global_step)
        logger.finalize("success")
