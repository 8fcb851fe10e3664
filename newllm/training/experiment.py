"""One experiment, built from its configuration and checked before its first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hydra.utils import to_absolute_path
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, OmegaConf, open_dict

from newllm.config.build import ConfigFault, instantiate
from newllm.config.origins import blame_origin
from newllm.data.module import DataModule
from newllm.data.reading import PATHS, is_there
from newllm.data.source import VALIDATION, Source, reference_faults, source_faults
from newllm.models.language_model import LanguageModel
from newllm.models.sizes import Budget
from newllm.reporting.figures import run_title
from newllm.runs.identity import decides_length, decides_vocabulary
from newllm.statistics.references import References, references_on
from newllm.training.checkpoints import Checkpoints
from newllm.training.clipping import GradientClip
from newllm.training.clock import Clock
from newllm.training.history import History
from newllm.training.loggers import build_loggers
from newllm.training.metrics import Scores
from newllm.training.module import LanguageModule, Schedule
from newllm.training.optimizer import OptimizerFactory
from newllm.training.preflight import Preflight, check
from newllm.training.trainer import build_trainer, planned_steps
from newllm.training.watching import Curves

Kind = TypeVar("Kind", bound=Callback)


@dataclass(frozen=True)
class Experiment:
    """Everything a run consists of; `references` are those of the validation split."""

    config: DictConfig
    name: str
    source: Source
    data: DataModule
    module: LanguageModule
    trainer: Trainer
    history: History
    references: References
    preflight: Preflight

    @property
    def model(self) -> LanguageModel:
        return self.module.model

    def callbacks(self, kind: type[Kind]) -> list[Kind]:
        """The callbacks of a kind."""
        every: list[Callback] = getattr(self.trainer, "callbacks")  # noqa: B009  (untyped)
        return [callback for callback in every if isinstance(callback, kind)]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """All settings that determine the result, by path, such as `optimizer/lr`."""
        resolved = OmegaConf.to_container(self.config, resolve=True)
        assert isinstance(resolved, dict)
        # The values of a recipe are read elsewhere, such as in optimizer/lr.
        resolved["recipe"] = {"name": self.config.recipe.name}
        parts = ("model", "data", "recipe", "optimizer", "schedule", "trainer", "countermeasures")
        flat = dict(_flat({part: resolved[part] for part in parts}))
        for name in ("data/directory", "data/order_seed"):
            flat.pop(name, None)
        countermeasures = ",".join(self.config.countermeasures) or "none"
        own = {"name": self.name, "seed": self.config.seed, "countermeasure": countermeasures}
        return own | flat


def _flat(content: Any, name: str = "") -> Iterator[tuple[str, int | float | str]]:
    """Plain values by path; an object appears as its class."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "_target_":
                yield f"{name}/class", str(value).rpartition(".")[2]
            elif not key.startswith("_"):
                yield from _flat(value, f"{name}/{key}".lstrip("/"))
    elif isinstance(content, int | float | str):
        yield name, content


def build_experiment(config: DictConfig, folder: Path) -> Experiment:
    """Build and check everything; sizes that follow from others are filled into a copy of `config`.

    Args:
        config: as composed.
        folder: where the run will write; nothing is written yet.

    Raises:
        ConfigFault: with all faults.
    """
    config = _with_absolute_paths(config)
    faults = _Faults()
    source = faults.collect(lambda: _build_source(config))
    clock = source and faults.collect(lambda: Clock.of(config, source))
    faults.collect(lambda: _fill_from_data(config, source))
    faults.collect(lambda: _fill_sizes(config))
    model = faults.collect(lambda: _build_model(config, source))
    clip = faults.collect(lambda: GradientClip(list(config.recipe.gradient_clip)))
    schedule = faults.collect(lambda: _build(config, config.schedule))
    callbacks = faults.collect(lambda: _build_callbacks(config))
    history = History(folder)
    checkpoints = Checkpoints(folder / "checkpoints", config.keep_last, config.checkpoint_steps)
    all_callbacks = [history, checkpoints, *(callbacks or [])]
    loggers = faults.collect(lambda: build_loggers(config, folder)) or []
    trainer = faults.collect(lambda: build_trainer(config, folder, all_callbacks, loggers, clock))
    if trainer and source:
        faults.collect(lambda: _check_processes(trainer, source))
    num_steps = 1
    if trainer and clock:
        num_steps = faults.collect(lambda: planned_steps(trainer, clock.epoch_length)) or 1
    optimizer = faults.collect(lambda: _build_optimizer(config))
    num_epochs = trainer.max_epochs if trainer else 1
    if model and optimizer:
        faults.collect(lambda: _check_schedule(model, optimizer, schedule, num_steps, num_epochs))
    faults.raise_if_any(config)
    references = faults.collect(lambda: _references(config, source))
    faults.raise_if_any(config)
    module = LanguageModule(model, optimizer, schedule, clip, num_steps)
    name = str(config.name or model.description)
    for callback in callbacks:
        if isinstance(callback, Curves):
            callback.references = dict(references.means)
            callback.title = run_title(name, config.data, config.seed)
    preflight = check(model, source, num_steps, instantiate(config.budget))
    share = trainer.global_rank, trainer.world_size
    data = DataModule(source, clock.epoch_length, config.test, share)
    return Experiment(config, name, source, data, module, trainer, history, references, preflight)


def _with_absolute_paths(config: DictConfig) -> DictConfig:
    """A copy with absolute paths, so that a recorded configuration finds its text from anywhere."""
    config = config.copy()
    for key in (*PATHS, "directory"):
        text = config.data.get(key)
        path = to_absolute_path(str(text))
        if text and (key != "name" or is_there(path)):  # else of a dataset on the Hub
            config.data[key] = path
    return config


def _fill_from_data(config: DictConfig, source: Source | None) -> None:
    """Fill in the sizes of the model that follow from its data; any size where that has faults.

    Raises:
        ConfigFault: a size was chosen for the model that the data would decide.
    """
    with open_dict(config):
        tokens, longest = (source.vocabulary_size, source.max_length) if source else (1, 1)
        if config.model.vocabulary_size is None:
            config.model.vocabulary_size = tokens
        if config.model.get("max_length", 0) is None:
            config.model.max_length = longest
    faults = []
    chosen = config.model.vocabulary_size
    if source and decides_vocabulary(config.recipe) and chosen > tokens:  # `_misfits` finds fewer
        faults.append(
            f"model.vocabulary_size={chosen}: follows from the data, where it is {tokens}; "
            f"set recipe.output_classes={chosen}"
        )
    chosen = config.model.get("max_length", longest)
    if source and decides_length(config.data) and chosen != longest:
        faults.append(f"model.max_length={chosen}: follows from the data, where it is {longest}")
    if faults:
        raise ConfigFault(faults)


class _Faults:
    """Collects faults, so that one does not hide the others."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def collect(self, build: Callable[[], Any]) -> Any:
        """What `build` returns; None if it raises a ValueError."""
        try:
            return build()
        except ValueError as error:
            self._lines += str(error).splitlines()
            return None

    def raise_if_any(self, config: DictConfig) -> None:
        """Raise all faults, each with the key that was set."""
        if lines := [blame_origin(config, line) for line in self._lines]:
            raise ConfigFault(list(dict.fromkeys(lines)))


def _build(config: DictConfig, node: Any) -> Any:
    return node and instantiate(node, config.trusted_packages)


def _build_callbacks(config: DictConfig) -> list[Callback]:
    """All callbacks but those without a `_target_`, which were left out."""
    nodes = config.callbacks.values()
    return [_build(config, node) for node in nodes if node and "_target_" in node]


def _build_optimizer(config: DictConfig) -> OptimizerFactory:
    return OptimizerFactory(_build(config, config.optimizer), config.recipe.get("base_fan_in"))


def _build_source(config: DictConfig) -> Source:
    source = _build(config, config.data)
    target = f"data._target_={config.data._target_}"
    if not isinstance(source, Source):
        raise ValueError(f"{target}: is not a newllm.data.source.Source")
    source.setup()
    if found := [f"{target}: {fault}" for fault in source_faults(source)]:
        raise ValueError("\n".join(found))
    for split in (source.train, *source.evaluation.values()):
        Scores.of(split, source.tokenizer)
    return source


def _references(config: DictConfig, source: Source) -> References:
    references = references_on(source, VALIDATION)
    if found := list(reference_faults(references.means)):
        raise ValueError("\n".join(f"data._target_={config.data._target_}: {f}" for f in found))
    return references


def _fill_sizes(config: DictConfig) -> None:
    """Derive the sizes of the model from a budget, if one is set."""
    budget: Budget = instantiate(config.budget)
    if unknown := [name for name in budget.names if name not in config.model]:
        raise ValueError(f"budget: the chosen model has no {', '.join(unknown)}")
    try:
        sizes = budget.sizes(partial(instantiate, config.model, config.trusted_packages))
    except ValueError as error:
        if str(error).startswith("budget."):
            raise
        hint = (
            f"the sizes chosen by a budget are multiples of budget.step={budget.step}; set it to a "
            "multiple of what must divide them"
        )
        lines = [f"{line}; {hint}" for line in str(error).splitlines()]
        raise ValueError("\n".join(lines)) from error
    config.model.update(sizes)


def _build_model(config: DictConfig, source: Source | None) -> LanguageModel:
    model = _build(config, config.model)
    if source and (faults := list(_misfits(model, source))):
        raise ValueError("\n".join(faults))
    return model


def _misfits(model: LanguageModel, source: Source) -> Iterator[str]:
    """Reasons why a model cannot be trained on a source."""
    if source.vocabulary_size > model.vocabulary_size:
        yield (
            f"model.vocabulary_size={model.vocabulary_size}: the vocabulary has "
            f"{source.vocabulary_size} tokens; set data.vocabulary_size={model.vocabulary_size}"
        )
    splits = source.train, *(split for split in source.evaluation.values() if len(split))
    is_continued = any(split.batch(0, 0).continues_B is not None for split in splits)
    if model.sees_the_future and is_continued:
        yield (
            f"{model.description}: the rows of {source.name} continue across batches, and a model "
            "that sees the future cannot; set data.feed=rows"
        )
    if model.positions and is_continued:
        yield (
            f"model.positions=learned: the rows of {source.name} continue across "
            "batches, so positions are unbounded; set model.positions to none or rotary"
        )


def _check_processes(trainer: Trainer, source: Source) -> None:
    """Check that a source can be trained on in as many processes."""
    batch, number = source.train.batch(0, 0), trainer.world_size
    if number > 1 and batch.continues_B is not None:
        # A checkpoint holds the carried states of the first process alone.
        raise ValueError(
            f"trainer.devices={number}: the rows of {source.name} continue across batches, which "
            "takes one device"
        )
    if number > len(batch.tokens_BT):
        raise ValueError(
            f"trainer.devices={number}: a batch has {len(batch.tokens_BT)} rows to share"
        )


def _check_schedule(
    model: LanguageModel, optimizer: Any, schedule: Schedule | None, num_steps: int, num_epochs: int
) -> None:
    """Build the optimizer and its scheduler once, because only that shows their faults."""
    part = "optimizer"
    try:
        built = optimizer(model)
        part = "schedule"
        if schedule is not None:
            schedule.check(built, num_steps, num_epochs)
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{part}: {reason}") from error
