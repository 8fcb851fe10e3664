"""What `result.json` and TensorBoard say of a run: before it starts and after it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from newllm.config.naming import record_of
from newllm.reporting import figures
from newllm.reporting.drawing import never_fatal
from newllm.runs.directory import RunDirectory, write_text
from newllm.runs.identity import config_hash, git_revision, variant_hash
from newllm.statistics.predictions import divergences, target_losses
from newllm.statistics.references import gap_closed, mean_by_position
from newllm.statistics.spikes import spikes_of_run
from newllm.training import loggers
from newllm.training.experiment import Experiment
from newllm.training.watching import StepValidation


def record_start(run: RunDirectory, experiment: Experiment, overrides: Sequence[str]) -> None:
    """Write down what is about to run, before it runs."""
    config, data, model = experiment.config, experiment.data, experiment.model
    run.write_config(config)
    write_text(run.path / "tokenizer.json", data.tokenizer.to_json())
    run.record(
        status="running",
        **record_of(overrides),
        name=experiment.name,
        seed=config.seed,
        corpus=config.data.corpus,
        parameters=sum(weight.numel() for weight in model.parameters()),
        sizes={name: size for name, size in config.model.items() if isinstance(size, int)},
        state_bytes=model.state_bytes(data.max_length),
        sees_the_future=model.sees_the_future,
        **dict.fromkeys(("steps", "epochs", "best_val_loss", "best_val_loss_batch_mean")),
        **dict.fromkeys(("best_epoch", "val_accuracy", "gap_closed", "test_loss", "spikes")),
        **dict.fromkeys(("val_loss_by_position", "val_kl", "val_kl_by_position")),
        oracle_loss=data.oracle_loss("validation"),
        test_oracle_loss=data.oracle_loss("test") if config.test else None,
        entropy_floor=data.entropy_floor,
        references=experiment.references.means,
        references_by_position=_rounded(experiment.references.by_position),
        gates=experiment.gates.as_result(),
        seconds=run.seconds_before or None,
        threads=torch.get_num_threads(),
        error=None,
        git_revision=git_revision(),
        data_sha256=data.data_sha256,
        config_hash=config_hash(config),
        variant_hash=variant_hash(config),
    )
    loggers.log_start(
        experiment.trainer.loggers, experiment.hyperparameters, experiment.references.means
    )


def measured(experiment: Experiment) -> dict[str, Any]:
    """The figures of a run, as far as it came. Each best is the best of its own curve."""
    history, trainer = experiment.history, experiment.trainer
    best = history.best("val/loss")
    loss = best.get("val/loss")
    test_loss = trainer.callback_metrics.get("test/loss")
    looks = [callback.rows for callback in experiment.callbacks(StepValidation)]
    return {
        "steps": trainer.global_step,
        "epochs": sum("train/loss" in row for row in history.epochs),
        "best_val_loss": loss,
        "best_val_loss_batch_mean": history.best("val/loss_batch_mean").get("val/loss_batch_mean"),
        "best_epoch": best.get("epoch"),
        "gap_closed": None if loss is None else gap_closed(loss, experiment.references.means),
        "val_accuracy": best.get("val/accuracy"),
        "test_loss": None if test_loss is None else test_loss.item(),
        "spikes": spikes_of_run(history.epochs, history.steps, looks[0] if looks else []),
    }


def predicted(experiment: Experiment) -> dict[str, Any]:
    """What the model, at its best, does at each position of the validation sentences, in nats."""
    data, model = experiment.data, experiment.model.eval()
    positions = experiment.references.positions
    losses = target_losses(model, data.split("validation"))
    found: dict[str, Any] = {"val_loss_by_position": mean_by_position(losses, positions)}
    kl = divergences(model, data)
    if kl is not None:
        found |= {"val_kl": float(kl.mean()), "val_kl_by_position": mean_by_position(kl, positions)}
    return _rounded(found)


def draw_positions(result: Mapping[str, Any], experiment: Experiment, folder: Path) -> None:
    """`positions.png`, also in TensorBoard: loss and KL at each position, beside the references."""
    references, trainer = experiment.references, experiment.trainer
    with never_fatal("positions.png"):
        figure = figures.positions(
            result["val_loss_by_position"],
            result["val_kl_by_position"],
            references.by_position,
            experiment.title,
            numbers=np.bincount(references.positions)[1:].tolist(),
            unit="words" if experiment.config.data.tokenizer == "words" else "tokens",
        )
        figure.write_png(folder / "positions.png")
        loggers.log_figure(trainer.loggers, "positions", figure, trainer.global_step)


def _rounded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of losses to four digits, so that the file stays readable."""
    return {
        name: [round(value, 4) for value in field] if isinstance(field, list) else field
        for name, field in fields.items()
    }


def log_best(experiment: Experiment) -> None:
    """Tell the loggers how the run ended: the figures that runs are compared by, its spikes."""
    found, trainer, references = measured(experiment), experiment.trainer, experiment.references
    spikes = [
        f"{series}: from {spike['onset']:g}, peak {spike['height']:.3f} at {spike['peak']:g}, "
        f"{spike['ratio']:.2f} times the level before"
        for series, some in found["spikes"].items()
        for spike in some
    ]
    losses = [f"{name}: {loss:.4f} nats per token" for name, loss in references.means.items()]
    step = trainer.global_step
    loggers.log_text(trainer.loggers, "spikes", spikes or ["none"], step)
    loggers.log_text(trainer.loggers, "references", losses, step)
    loggers.log_references(trainer.loggers, references.means, step)
    best = {name: found[f"best_{name}"] for name in ("val_loss", "epoch")}
    best |= {name: found[name] for name in ("test_loss", "gap_closed", "val_accuracy")}
    loggers.log_end(trainer.loggers, best, step)
