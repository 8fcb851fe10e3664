"""Faults that show only in the composed configuration: contradictions and unread choices."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.build import ConfigFault, target_faults
from newllm.models.budget import decided_sizes

# What train.py builds or reads. Any other node is a part (gating, recipe, countermeasures ...):
# it acts only where one of these refers to it as ${part}.
BUILT = ("model", "budget", "data", "optimizer", "schedule", "trainer", "logger", "callbacks")
READ = (*BUILT, "recipe.gradient_clip", "recipe.name")
SETTINGS = (
    *("seed", "name", "threads", "plan", "keep_last", "overwrite", "jobs", "test"),
    *("trusted_packages", "hydra"),
)
# Groups that bundle other choices: nothing reads them by their name.
BUNDLES = ("experiment", "recipe", "countermeasure", "sweep", "trial", "scale")


def composed_faults(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """One line for each fault of a composed configuration.

    Needs Hydra to be initialised, since it looks into the chosen experiment's own file.

    Args:
        config: as composed, interpolations unresolved.
        overrides: what was explicitly chosen on the command line.
    """
    faults = [
        *_corpus_contradictions(config),
        *_unread_choices(config, overrides),
        *_decided_twice(config, overrides),
        *_idle_budget(config, overrides),
        *_nothing_to_build(config, overrides),
        *_scale_faults(config, overrides),
    ]
    for name in BUILT:
        try:
            node = OmegaConf.select(config, name)
            OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else None
        except OmegaConfBaseException as error:
            faults.append(str(error).partition("\n")[0])
            continue
        faults += target_faults(node, name, config.trusted_packages or ())
    return faults


def _corpus_contradictions(config: DictConfig) -> Iterator[str]:
    wanted = {
        name: node.corpus for name, node in config.countermeasures.items() if "corpus" in node
    }
    if len(set(wanted.values())) > 1:
        wishes = " and ".join(f"{name} wants data={corpus}" for name, corpus in wanted.items())
        yield f"countermeasure=[{','.join(wanted)}]: {wishes}; keep one of them"
        return
    for name, corpus in wanted.items():
        if config.data.corpus != corpus:
            yield (
                f"countermeasure={name} wants data={corpus}, "
                f"but data={config.data.corpus} was chosen; drop one of the two"
            )


def _decided_twice(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Sizes that were chosen although a budget decides on them."""
    decided = decided_sizes(config.budget)
    for line in overrides:
        key, _, value = line.lstrip("+~").partition("=")
        if (name := key.removeprefix("model.")) in decided and key != name:
            yield f"{key}={value}: follows from {decided[name]}; drop one of the two"


def _idle_budget(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """What was chosen for a budget that is not set."""
    budget = config.budget
    readers = {"widths": ["parameters"], "state_widths": ["state_bytes"]}
    readers["step"] = ["parameters", "state_bytes"]
    for line in overrides:
        part, _, key = line.lstrip("+~").partition("=")[0].partition(".")
        needed = readers.get(key.partition(".")[0], []) if part == "budget" else []
        if needed and all(budget[name] is None for name in needed):
            wishes = " or ".join(f"budget.{name}" for name in needed)
            choice = line.lstrip("+~")
            yield f"{choice}: nothing follows from it without {wishes}; set one or drop it"


def _nothing_to_build(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """What was chosen for a logger or callback that is not there (a file's choices are dropped)."""
    for line in overrides:
        choice = line.lstrip("+~")
        group, *names = choice.partition("=")[0].split(".")
        if group in ("logger", "callbacks") and names:
            node = _descend(OmegaConf.to_container(config, resolve=False), f"{group}.{names[0]}")
            if isinstance(node, dict) and "_target_" not in node:
                yield f"{choice}: {group} has no {names[0]} that would read it; drop it"


def _scale_faults(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """A `scale` without widths that could follow, and choices that set what it sets."""
    chosen = dict(line.lstrip("+~").partition("=")[::2] for line in overrides)
    if chosen.get("scale", "none") == "none":
        return
    scale = f"scale={chosen['scale']}"
    if not config.budget.widths:
        yield f"{scale}: goes with experiment=scaling_..., which says what widths follow"
    for key in ("budget.parameters", "trial"):
        if chosen.get(key, "none") != "none":
            yield f"{key}={chosen[key]}: {scale} stands in its place; drop one of the two"


def _unread_choices(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Choices that nothing reads.

    What an experiment's file sets may be replaced by a value on the command line, as
    `trainer.max_epochs=5` replaces `recipe.max_epochs`: that is no fault of anybody.
    """
    read = _read_nodes(config)
    values = [line for line in overrides if "." in line.partition("=")[0]]
    if values and any(line.startswith("experiment=") for line in overrides):
        others = [line for line in overrides if line not in values]
        by_file = _read_nodes(_compose(others))
    else:
        by_file = read
    model = str(OmegaConf.select(config, "model._target_")).rpartition(".")[2]
    for key, source in _explicit_choices(overrides):
        if key.split(".")[0] in (*SETTINGS, *BUILT) or key in BUNDLES:
            continue
        readable = by_file if source.startswith("experiment=") else read
        if not any(_overlap(key, name) for name in readable):
            chosen = source if source.startswith(key) else f"{key} (from {source})"
            # With nothing else chosen than what decides on the model, would it be read?
            deciding = [line for line in overrides if line.startswith(("model=", "experiment="))]
            alone = _compose([*deciding, source]) if source not in deciding else config
            if any(_overlap(key, name) for name in _read_nodes(alone)):
                yield f"{chosen}: another choice stands in its place; drop one of the two"
            else:
                yield f"{chosen}: {model} does not read it; drop it"


def _explicit_choices(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a chosen key and where it was chosen: an override, or an experiment's file."""
    for line in overrides:
        key, _, value = line.lstrip("+~").partition("=")
        yield key.partition("@")[0].replace("/", "."), line
        if key == "experiment":
            loader = GlobalHydra.instance().config_loader()
            file = loader.repository.load_config(f"experiment/{value}")  # type: ignore[attr-defined]
            assert file is not None
            for default in file.defaults_list:
                if default.is_override():
                    yield default.group.strip("/"), line
            for leaf in _leaves(OmegaConf.to_container(file.config)):
                yield leaf, line


def _compose(overrides: Sequence[str]) -> DictConfig:
    loader = GlobalHydra.instance().config_loader()
    return loader.load_configuration("config", list(overrides), run_mode=RunMode.RUN)


def _leaves(content: Any, name: str = "") -> Iterator[str]:
    if name and not (isinstance(content, dict) and content):
        yield name
        return
    for key, value in content.items():
        if key != "defaults":
            yield from _leaves(value, f"{name}.{key}".lstrip("."))


def _overlap(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.")


def _read_nodes(config: DictConfig) -> set[str]:
    """Dotted names of the nodes that are read, directly or by a chain of ${...}."""
    raw = OmegaConf.to_container(config, resolve=False)
    read: set[str] = set()
    waiting = list(READ)
    while waiting:
        name = waiting.pop()
        if name not in read:
            read.add(name)
            waiting += _references(_descend(raw, name))
    return read


def _descend(content: Any, name: str) -> Any:
    for key in name.split("."):
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _references(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield from re.findall(r"\$\{([A-Za-z_][\w.]*)\}", content)
    elif isinstance(content, dict | list):
        for item in content.values() if isinstance(content, dict) else content:
            yield from _references(item)


def check_settings(config: DictConfig) -> None:
    """Check the settings that belong to no object.

    Raises:
        ConfigFault: if one of them is impossible.
    """
    faults = []
    cores = os.cpu_count() or 1
    ranges = {"seed": (0, 2**32 - 1), "threads": (1, cores), "jobs": (1, cores)}
    for key, (smallest, largest) in ranges.items():
        value = config[key]
        is_number = isinstance(value, int) and not isinstance(value, bool)
        may_be_null = key != "seed" and value is None
        if not (is_number and smallest <= value <= largest) and not may_be_null:
            faults.append(f"{key}={value}: must be a whole number from {smallest} to {largest}")
    if faults:
        raise ConfigFault(faults)
