"""One experiment, built from its configuration and checked before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import DictConfig, OmegaConf, open_dict

from newllm.analysis.references import ReferenceModels, References
from newllm.callbacks import Curves
from newllm.clipping import GradientClip
from newllm.config.build import ConfigFault, instantiate
from newllm.data.module import CorpusDataModule
from newllm.gates import Gates, check
from newllm.models.budget import Budget
from newllm.models.language_model import LanguageModel
from newllm.module import LanguageModule
from newllm.precision import precision_name
from newllm.recording import Checkpoints, History, StopOnDivergence

Kind = TypeVar("Kind", bound=Callback)


@dataclass(frozen=True)
class Experiment:
    """All that a run needs. `references` are those of the validation split."""

    config: DictConfig
    name: str
    data: CorpusDataModule
    module: LanguageModule
    trainer: Trainer
    history: History
    references: References
    gates: Gates

    @property
    def model(self) -> LanguageModel:
        return self.module.model

    def callbacks(self, kind: type[Kind]) -> list[Kind]:
        """The callbacks of a kind."""
        every: list[Callback] = getattr(self.trainer, "callbacks")  # noqa: B009  (untyped)
        return [callback for callback in every if isinstance(callback, kind)]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What decides the run, flat, for TensorBoard's HParams tab."""
        resolved = OmegaConf.to_container(self.config, resolve=True)
        assert isinstance(resolved, dict)
        flat = {
            f"{part}/{key}": value
            for part in ("model", "data", "optimizer", "recipe")
            for key, value in resolved[part].items()
            if isinstance(value, int | float | str)
            and not key.startswith("_")
            and key not in ("directory", "order_seed")
        }
        countermeasures = ",".join(self.config.countermeasures) or "none"
        own = {"name": self.name, "seed": self.config.seed, "countermeasures": countermeasures}
        return own | flat


def build_experiment(config: DictConfig, folder: Path) -> Experiment:
    """Build everything; sizes that follow from others are filled into a copy of the configuration.

    Args:
        config: as composed.
        folder: where the run will write; nothing is written yet.

    Raises:
        ConfigFault: with all faults that were found on the way.
    """
    config = config.copy()
    faults = _Faults()
    data = faults.collect(lambda: _build_data(config))
    with open_dict(config):
        if config.model.vocabulary_size is None:
            config.model.vocabulary_size = data.tokenizer.size if data else 1
    faults.collect(lambda: _fill_sizes(config))
    model = faults.collect(lambda: _build_model(config, data))
    clip = faults.collect(lambda: GradientClip(list(config.recipe.gradient_clip)))
    schedule = faults.collect(lambda: _build(config, config.schedule))
    callbacks = faults.collect(lambda: _build_all(config, config.callbacks))
    history = History(folder)
    recorders = [history, Checkpoints(folder / "checkpoints", config.keep_last), StopOnDivergence()]
    trainer = faults.collect(
        lambda: _build_trainer(config, folder, [*recorders, *(callbacks or [])])
    )
    faults.collect(lambda: _check_steps(trainer, data))
    optimizer = faults.collect(lambda: _build(config, config.optimizer))
    module = faults.collect(lambda: _build_module(model, optimizer, schedule, clip))
    faults.raise_if_any()
    on_validation = ReferenceModels(data).on("validation")
    # What was resolved names a run, not what was typed.
    name = str(config.name or model.description)
    for callback in callbacks:
        if isinstance(callback, Curves):
            callback.references, callback.title = on_validation.means, name
    num_steps = planned_steps(trainer, data)
    gates = check(model, data, num_steps)
    return Experiment(config, name, data, module, trainer, history, on_validation, gates)


class _Faults:
    """Lets building go on past a fault, to find the others as well."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def collect(self, build: Callable[[], Any]) -> Any:
        """What `build` returns; None if it finds a fault."""
        try:
            return build()
        except ValueError as error:
            self._lines += str(error).splitlines()
            return None

    def raise_if_any(self) -> None:
        if self._lines:
            raise ConfigFault(list(dict.fromkeys(self._lines)))


def _build(config: DictConfig, node: Any, **arguments: Any) -> Any:
    return node and instantiate(node, config.trusted_packages, **arguments)


def _build_all(config: DictConfig, nodes: DictConfig, **arguments: Any) -> list[Any]:
    """All but those that were left out: null, or only settings for what was not chosen."""
    chosen = [node for node in nodes.values() if node and "_target_" in node]
    return [_build(config, node, **arguments) for node in chosen]


def _build_data(config: DictConfig) -> CorpusDataModule:
    data = _build(config, config.data)
    data.setup()
    return data


def _fill_sizes(config: DictConfig) -> None:
    """Where a budget was set, the sizes of the model follow from it."""
    budget: Budget = instantiate(config.budget)
    if unknown := [name for name in budget.names if name not in config.model]:
        model = str(config.model._target_).rpartition(".")[2]
        raise ValueError(f"budget: {model} has no {', '.join(unknown)}")
    sizes = budget.sizes(partial(instantiate, config.model, config.trusted_packages))
    config.model.update(sizes)


def _build_model(config: DictConfig, data: CorpusDataModule | None) -> LanguageModel:
    model = _build(config, config.model)
    if data and data.tokenizer.size > model.vocabulary_size:
        raise ValueError(
            f"model.vocabulary_size={model.vocabulary_size}: the vocabulary has "
            f"{data.tokenizer.size} tokens; set data.vocabulary_size={model.vocabulary_size}"
        )
    return model


def _build_module(model: Any, optimizer: Any, schedule: Any, clip: Any) -> LanguageModule | None:
    if model is None or optimizer is None or clip is None:
        return None
    # The faults of an optimizer and a scheduler show only when they are built.
    built = _named("optimizer", lambda: optimizer(model.parameters()))
    if schedule is not None:
        _named("schedule", lambda: schedule.build(built, total_steps=100))
    return LanguageModule(model, optimizer, schedule, clip)


def _named(part: str, build: Callable[[], Any]) -> Any:
    """What `build` returns; torch's own message does not say what it is about."""
    try:
        return build()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{part}: {error}") from error


def _build_trainer(config: DictConfig, folder: Path, callbacks: list[Callback]) -> Trainer:
    precision = precision_name(config.trainer.precision)
    trainer: Trainer = _build(
        config,
        config.trainer,
        precision=precision,
        default_root_dir=str(folder),
        callbacks=callbacks,
        logger=_build_all(config, config.logger, save_dir=str(folder)),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    if (trainer.max_epochs or 0) < 1:
        raise ValueError(f"trainer.max_epochs={trainer.max_epochs}: must be at least 1")
    if trainer.num_devices != 1 or not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise ValueError(
            f"trainer.devices={config.trainer.devices} trainer.strategy={config.trainer.strategy}: "
            "a run is one process on one device; leave them at 1 and auto"
        )
    for split in ("train", "val"):
        if getattr(trainer, f"limit_{split}_batches") == 0:
            raise ValueError(f"trainer.limit_{split}_batches=0: a run needs some of both")
    return trainer


def _check_steps(trainer: Trainer | None, data: CorpusDataModule | None) -> None:
    """Whatever is best is best on validation, which comes at an epoch's end."""
    if trainer and data and 0 <= trainer.max_steps < (steps := _steps_per_epoch(trainer, data)):
        raise ValueError(
            f"trainer.max_steps={trainer.max_steps} ends before the first validation, after "
            f"{steps} steps; limit the epoch as well: trainer.limit_train_batches=N"
        )


def planned_steps(trainer: Trainer, data: CorpusDataModule) -> int:
    """Optimizer steps, if nothing stops the run early."""
    planned = _steps_per_epoch(trainer, data) * (trainer.max_epochs or 0)
    return planned if trainer.max_steps < 0 else min(planned, trainer.max_steps)


def _steps_per_epoch(trainer: Trainer, data: CorpusDataModule) -> int:
    limit = trainer.limit_train_batches
    if isinstance(limit, float):
        return int(data.steps_per_epoch * limit)
    return min(data.steps_per_epoch, limit)
