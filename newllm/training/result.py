"""What `result.json` and TensorBoard say of a run: before it starts and after it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from newllm.config.naming import record_of
from newllm.data.source import TEST, VALIDATION
from newllm.data.sources.sentences import SentenceSource
from newllm.models.sizes import num_parameters
from newllm.reporting import figures
from newllm.reporting.drawing import never_fatal
from newllm.runs.directory import RunDirectory, write_text
from newllm.runs.identity import config_hash, git_revision, variant_hash
from newllm.statistics.predictions import divergences, target_losses
from newllm.statistics.references import gap_closed, mean_by_position
from newllm.statistics.spikes import spikes_of_run
from newllm.training import loggers
from newllm.training.experiment import Experiment
from newllm.training.step_validation import StepValidation


def record_start(run: RunDirectory, experiment: Experiment, overrides: Sequence[str]) -> None:
    """Write down what is about to run, before it runs."""
    config, source, model = experiment.config, experiment.source, experiment.model
    run.write_config(config)
    if source.tokenizer is not None:
        write_text(run.path / "tokenizer.json", source.tokenizer.to_json())
    run.record(
        status="running",
        **record_of(overrides),
        name=experiment.name,
        seed=config.seed,
        corpus=source.name,
        parameters=num_parameters(model),
        sizes={name: size for name, size in config.model.items() if isinstance(size, int)},
        state_bytes=model.state_bytes(source.max_length),
        sees_the_future=model.sees_the_future,
        has_tokenizer=source.tokenizer is not None,
        **dict.fromkeys(("steps", "epochs", "best_val_loss", "best_val_loss_batch_mean")),
        **dict.fromkeys(("best_epoch", "best_step", "val_accuracy", "gap_closed", "spikes")),
        **dict.fromkeys(("test_loss", "evaluation")),
        **dict.fromkeys(("val_loss_by_position", "val_kl", "val_kl_by_position")),
        oracle_loss=source.oracle_loss(VALIDATION),
        test_oracle_loss=source.oracle_loss(TEST) if config.test else None,
        entropy_floor=source.entropy_floor if isinstance(source, SentenceSource) else None,
        references=dict(experiment.references.means),
        references_by_position=_rounded(experiment.references.by_position),
        preflight=experiment.preflight.as_result(),
        seconds=run.seconds_before or None,
        threads=torch.get_num_threads(),
        error=None,
        git_revision=git_revision(),
        data_sha256=source.digest,
        config_hash=config_hash(config),
        variant_hash=variant_hash(config),
    )
    loggers.log_start(
        experiment.trainer.loggers, experiment.hyperparameters, experiment.references.means
    )


def measured(experiment: Experiment) -> dict[str, Any]:
    """The figures of a run, as far as it came. Each best is the best of its own curve."""
    history, trainer = experiment.history, experiment.trainer
    loss = history.best.get("val_loss")
    looks = [callback.rows for callback in experiment.callbacks(StepValidation)]
    return {
        "steps": trainer.global_step,
        "epochs": sum("train/loss" in row for row in history.epochs),
        "best_val_loss": loss,
        "best_val_loss_batch_mean": history.lowest("val/loss_batch_mean"),
        "best_epoch": history.best.get("epoch"),
        "best_step": history.best.get("step"),
        "gap_closed": None if loss is None else gap_closed(loss, experiment.references.means),
        "val_accuracy": history.best_row().get("val/accuracy"),
        "spikes": spikes_of_run(history.epochs, history.steps, looks[0] if looks else []),
    }


def predicted(experiment: Experiment) -> dict[str, Any]:
    """What the model, at its best, does at each position of the validation sentences, in nats."""
    source, positions = experiment.source, experiment.references.positions
    if not isinstance(source, SentenceSource) or positions is None:
        return {}
    model = experiment.model.eval()
    losses = target_losses(model, source.split(VALIDATION))
    found: dict[str, Any] = {"val_loss_by_position": mean_by_position(losses, positions)}
    kl = divergences(model, source)
    if kl is not None:
        found |= {"val_kl": float(kl.mean()), "val_kl_by_position": mean_by_position(kl, positions)}
    return _rounded(found)


def draw_positions(result: Mapping[str, Any], experiment: Experiment, folder: Path) -> None:
    """`positions.png`, also in TensorBoard: loss and KL at each position, beside the references."""
    references, trainer = experiment.references, experiment.trainer
    if references.positions is None:
        return
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


def log_best(result: Mapping[str, Any], experiment: Experiment) -> None:
    """Tell the loggers how the run ended: the figures that runs are compared by, its spikes."""
    trainer, references = experiment.trainer, experiment.references
    spikes = [
        f"{series}: from {spike['onset']:g}, peak {spike['height']:.3f} at {spike['peak']:g}, "
        f"{spike['ratio']:.2f} times the level before"
        for series, some in result["spikes"].items()
        for spike in some
    ]
    losses = [f"{name}: {loss:.4f} nats per token" for name, loss in references.means.items()]
    step = trainer.global_step
    loggers.log_text(trainer.loggers, "spikes", spikes or ["none"], step)
    loggers.log_text(trainer.loggers, "references", losses, step)
    loggers.log_references(trainer.loggers, references.means, step)
    best = {name: result[f"best_{name}"] for name in ("val_loss", "epoch", "step")}
    best |= {name: result[name] for name in ("test_loss", "gap_closed", "val_accuracy")}
    loggers.log_end(trainer.loggers, best, step)
