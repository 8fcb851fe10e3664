"""What a run records in `result.json` and its loggers before it starts and after it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from newllm.config.naming import record_of
from newllm.data.source import TEST, VALIDATION, Source
from newllm.models.sizes import num_parameters
from newllm.reporting import figures
from newllm.reporting.drawing import never_fatal
from newllm.runs.directory import RunDirectory
from newllm.runs.identity import config_hash, git_revision, variant_hash
from newllm.runs.writing import write_text
from newllm.statistics.predictions import bits_per_byte, divergences, target_losses
from newllm.statistics.references import gap_closed, mean_by_position, references_on
from newllm.statistics.spikes import spikes_of_run
from newllm.training import loggers
from newllm.training.experiment import Experiment
from newllm.training.step_validation import StepValidation


def record_start(run: RunDirectory, experiment: Experiment, overrides: Sequence[str]) -> None:
    """Record what is about to run."""
    config, source, model = experiment.config, experiment.source, experiment.model
    references = experiment.references
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
        state_bits=model.state_bits(source.max_length),
        sees_the_future=model.sees_the_future,
        has_tokenizer=source.tokenizer is not None,
        **dict.fromkeys(measured(experiment)),
        **dict.fromkeys(("test_loss", "evaluation", "val_loss_by_position", "error")),
        **dict.fromkeys(("bits_per_byte", "test_bits_per_byte")),
        **dict.fromkeys(("val_kl", "val_kl_by_position")),
        oracle_loss=source.oracle_loss(VALIDATION),
        test_oracle_loss=source.oracle_loss(TEST) if config.test else None,
        entropy_floor=source.entropy_floor,
        references=dict(references.means),
        references_by_position=_rounded(references.by_position),
        places_by_position=references.places,
        references_bits_per_byte=references.in_bits_per_byte or None,
        test_references_bits_per_byte=_of_test(source) if config.test else None,
        data_card=source.card(),
        preflight=experiment.preflight.as_result(),
        seconds=run.seconds_before or None,
        threads=experiment.trainer.world_size * torch.get_num_threads(),  # of all processes
        git_revision=git_revision(),
        data_sha256=source.digest,
        config_hash=config_hash(config),
        # That of the first start: `config.yaml`, which a run resumes from, is resolved.
        variant_hash=run.result.get("variant_hash") or variant_hash(config),
    )
    loggers.log_start(experiment.trainer.loggers, experiment.hyperparameters, references.means)


def _of_test(source: Source) -> dict[str, float] | None:
    """The references of the test split in bits per byte, if its tokens stand for bytes."""
    if TEST not in source.evaluation or not source.num_bytes(TEST):
        return None
    found = references_on(source, TEST).in_bits_per_byte
    source.write()  # the next run finds them in the cache
    return found


def measured(experiment: Experiment) -> dict[str, Any]:
    """The figures of a run so far."""
    history, trainer = experiment.history, experiment.trainer
    best, epochs = history.best, history.epochs
    loss, best_step = best.get("val_loss"), best.get("step")
    best_row: Mapping[str, float] = next((row for row in epochs if row["step"] == best_step), {})
    batch_means = [row.get("val/loss_batch_mean", math.nan) for row in epochs]
    looks = [callback.rows for callback in experiment.callbacks(StepValidation)]
    spikes = None  # of an endless split, whose batches differ in difficulty
    if experiment.source.train.num_batches is not None:
        spikes = spikes_of_run(epochs, history.steps, looks[0] if looks else [])
    return {
        "steps": trainer.global_step,
        "epochs": sum("train/loss" in row for row in epochs),
        "best_val_loss": loss,
        "best_val_loss_batch_mean": min(filter(math.isfinite, batch_means), default=None),
        "best_epoch": best.get("epoch"),
        "best_step": best_step,
        "gap_closed": None if loss is None else gap_closed(loss, experiment.references.means),
        "val_accuracy": best_row.get("val/accuracy"),
        "spikes": spikes,
    }


def predicted(experiment: Experiment) -> dict[str, Any]:
    """Loss and KL of the model at each position of the validation sentences, in nats."""
    source, positions = experiment.source, experiment.references.positions
    if (split := source.encoded(VALIDATION)) is None or positions is None:
        return {}
    # Lightning moves it away from its device when it has trained or tested.
    model = experiment.model.eval().to(experiment.trainer.strategy.root_device)
    losses = target_losses(model, split)
    found: dict[str, Any] = {
        "val_loss_by_position": mean_by_position(losses, positions),
        "bits_per_byte": (bits := _bits_per_byte(experiment, losses)),
        "test_bits_per_byte": bits[TEST]["value"] if TEST in bits else None,
    }
    kl = divergences(model, source)
    model.cpu()
    if kl is not None:
        found |= {"val_kl": float(kl.mean()), "val_kl_by_position": mean_by_position(kl, positions)}
    return _rounded(found)


def _bits_per_byte(experiment: Experiment, losses: np.ndarray) -> dict[str, Any]:
    """Bits per byte by split; `losses` are those of validation. Empty without bytes."""
    source, config = experiment.source, experiment.config
    if (found := bits_per_byte(losses, source, VALIDATION)) is None:
        return {}
    by_split: dict[str, Any] = {VALIDATION: found}
    test = source.encoded(TEST) if config.test else None
    if test is not None and len(test):
        by_split[TEST] = bits_per_byte(target_losses(experiment.model, test), source, TEST)
    return by_split


def _rounded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Round the losses of lists to four digits, so that the file stays readable."""
    return {
        name: [round(value, 4) for value in field] if isinstance(field, list) else field
        for name, field in fields.items()
    }


def draw_positions(result: Mapping[str, Any], experiment: Experiment, folder: Path) -> None:
    """Draw `positions.png`, also for TensorBoard: loss and KL by position, with the references."""
    references, trainer = experiment.references, experiment.trainer
    tokenizer = experiment.source.tokenizer
    if references.positions is None:
        return
    with never_fatal("positions.png"):
        figure = figures.positions(
            result["val_loss_by_position"],
            result["val_kl_by_position"],
            references.by_position,
            figures.run_title(experiment.name, experiment.config.data, experiment.config.seed),
            numbers=np.bincount(references.positions)[1:].tolist(),
            unit="words" if tokenizer and tokenizer.is_of_words else "tokens",
            places=references.places,
        )
        figure.write_png(folder / "positions.png")
        loggers.log_figure(trainer.loggers, "positions", figure, trainer.global_step)


def log_best(result: Mapping[str, Any], experiment: Experiment) -> None:
    """Log the figures by which runs are compared."""
    trainer = experiment.trainer
    loggers.log_references(trainer.loggers, experiment.references.means, trainer.global_step)
    best = {name: result[f"best_{name}"] for name in ("val_loss", "epoch", "step")}
    best |= {name: result[name] for name in ("test_loss", "gap_closed", "val_accuracy")}
    loggers.log_end(trainer.loggers, best, trainer.global_step)
