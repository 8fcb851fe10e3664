"""Faults that show only in the composed configuration: contradictions and unread choices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.build import ConfigFault, arguments_of, target_faults
from newllm.config.leftovers import chose_another_model, without_leftovers
from newllm.config.naming import split
from newllm.config.origins import (
    descend,
    leaves,
    origin,
    overlap,
    raw,
    read_nodes,
)
from newllm.config.ranges import number_faults
from newllm.models.sizes import decided_sizes, named_sizes

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
    if faults := list(_unresolved(config)) or list(_broken_parts(config)):
        return faults  # nothing more can be said of such values
    config = without_leftovers(config, overrides)
    return [
        *_corpus_contradictions(config),
        *_unread_choices(config, overrides),
        *_decided_twice(config, overrides),
        *_idle_budget(config, overrides),
        *_nothing_to_build(config, overrides),
        *_scale_faults(config, overrides),
        *_target_faults(config, overrides),
        *number_faults(config),
    ]


def _unresolved(config: DictConfig) -> Iterator[str]:
    """Values that refer to nothing, and those that are still to be given."""
    content = raw(config)
    told = set()
    for name, value in leaves(content):
        # The last of a chain of references tells it for all.
        key = origin(content, name)
        key = name if descend(content, key) is None else key
        if key in told:
            continue
        told.add(key)
        if value == "???":
            yield f"{key}=???: has no value yet; set it"
        elif "${" in str(value) and (reason := _resolution_fault(config, key)):
            yield f"{key}={descend(content, key)}: {reason}"


def _resolution_fault(config: DictConfig, key: str) -> str | None:
    """Why a value cannot be resolved; None if it can."""
    try:
        value = OmegaConf.select(config, key)
        if OmegaConf.is_config(value):
            OmegaConf.to_container(value, resolve=True)
    except RecursionError:
        return "refers to itself"
    except OmegaConfBaseException as error:
        return str(error).partition("\n")[0]
    return None


def _broken_parts(config: DictConfig) -> Iterator[str]:
    """Parts that are no mappings, or do not say what is to be built."""
    for part in (*BUILT, "recipe", "countermeasures"):
        node = config.get(part)
        if node is None and part == "schedule":
            continue
        if not isinstance(node, DictConfig):
            yield f"{part}: must be a mapping"
        elif part in ("logger", "callbacks", "countermeasures"):
            for name, item in node.items():
                if not isinstance(item, DictConfig | None):
                    yield f"{part}.{name!s}: must be a mapping"
        elif part != "recipe" and "_target_" not in node:
            yield f"{part}._target_: lacks; it says what is built"


def _target_faults(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """What cannot be built, or does not take its arguments."""
    trusted = config.trusted_packages or ()
    faults = [fault for part in BUILT for fault in target_faults(config[part], part, trusted)]
    chosen = dict(map(split, overrides))
    for key, value in chosen.items():
        part, _, leaf = key.rpartition(".")
        node = OmegaConf.select(config, part) if leaf == "_target_" else None
        known = arguments_of(node, trusted)
        if node is None or known is None:
            continue
        # They are the arguments of what stood in its place, which nobody chose.
        names = [str(name) for name in node if name not in known and not str(name).startswith("_")]
        left = [f"{part}.{name}" for name in names if f"{part}.{name}" not in chosen]
        if left:
            faults = [
                fault for fault in faults if not fault.startswith(tuple(f"{k}:" for k in left))
            ]
            words = " ".join(f"'~{name}'" for name in left)
            yield f"{key}={value}: takes no {', '.join(names)}; leave them out: {words}"
    yield from (_told_of_countermeasure(config, fault) for fault in faults)


def _told_of_countermeasure(config: DictConfig, fault: str) -> str:
    """A fault of a key, with the countermeasure that set it: nobody chose the key itself."""
    key, colon, rest = fault.partition(": ")
    part, _, name = origin(raw(config), key).partition(".")
    if part != "countermeasures" or not colon:
        return fault
    return f"{key} (from countermeasure={name.partition('.')[0]}): {rest}"


def _corpus_contradictions(config: DictConfig) -> Iterator[str]:
    wanted = {
        name: node.corpus
        for name, node in config.countermeasures.items()
        if node and "corpus" in node
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
        key, value = split(line)
        if (name := key.removeprefix("model.")) in decided and key != name:
            yield f"{key}={value}: follows from {decided[name]}; drop one of the two"


def _idle_budget(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """What was chosen for a budget that is not set."""
    budget = config.budget
    readers = {"widths": ["parameters"], "state_widths": ["state_bytes"]}
    readers["step"] = ["parameters", "state_bytes"]
    for line in overrides:
        chosen, value = split(line)
        part, _, key = chosen.partition(".")
        needed = readers.get(key.partition(".")[0], []) if part == "budget" else []
        if needed and all(budget[name] is None for name in needed):
            wishes = " or ".join(f"budget.{name}" for name in needed)
            choice = f"{chosen}={value}"
            yield f"{choice}: nothing follows from it without {wishes}; set one or drop it"


def _nothing_to_build(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """What was chosen for a logger or callback that is not there (a file's choices are dropped)."""
    for line in overrides:
        key, value = split(line)
        group, *names = key.split(".")
        if group in ("logger", "callbacks") and names:
            node = descend(raw(config), f"{group}.{names[0]}")
            if isinstance(node, dict) and "_target_" not in node:
                yield f"{key}={value}: {group} has no {names[0]} that would read it; drop it"


def _scale_faults(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """A `scale` without widths that could follow, and choices that set what it sets."""
    chosen = dict(map(split, overrides))
    if chosen.get("scale", "none") == "none":
        return
    scale = f"scale={chosen['scale']}"
    if not named_sizes(config.budget)["widths"]:
        yield f"{scale}: goes with experiment=scaling_..., which says what widths follow"
    for key in ("budget.parameters", "trial"):
        if chosen.get(key, "none") != "none":
            yield f"{key}={chosen[key]}: {scale} stands in its place; drop one of the two"


def _unread_choices(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Choices that nothing reads.

    What an experiment's file sets may be replaced by a value on the command line, as
    `trainer.max_epochs=5` replaces `recipe.max_epochs`: that is no fault of anybody.
    """
    read = read_nodes(config, READ)
    values = [line for line in overrides if "." in line.partition("=")[0]]
    if values and any(line.startswith("experiment=") for line in overrides):
        others = [line for line in overrides if line not in values]
        by_file = read_nodes(_compose(others), READ)
    else:
        by_file = read
    for key, source in _explicit_choices(overrides):
        if source.startswith("experiment=") and chose_another_model(overrides):
            continue  # what the file chose for its own model is left out
        if key.split(".")[0] in (*SETTINGS, *BUILT) or key in BUNDLES:
            continue
        readable = by_file if source.startswith("experiment=") else read
        if not any(overlap(key, name) for name in readable):
            chosen = source if source.startswith(key) else f"{key} (from {source})"
            # With nothing else chosen than what decides on the model, would it be read?
            deciding = [line for line in overrides if line.startswith(("model=", "experiment="))]
            alone = _compose([*deciding, source]) if source not in deciding else config
            if any(overlap(key, name) for name in read_nodes(alone, READ)):
                yield f"{chosen}: another choice stands in its place; drop one of the two"
            else:
                yield f"{chosen}: the chosen model does not read it; drop it"


def _explicit_choices(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a chosen key and where it was chosen: an override, or an experiment's file."""
    for line in overrides:
        key, value = split(line)
        yield key, line
        if key == "experiment":
            loader = GlobalHydra.instance().config_loader()
            file = loader.repository.load_config(f"experiment/{value}")  # type: ignore[attr-defined]
            assert file is not None
            for default in file.defaults_list:
                if default.is_override():
                    yield default.group.strip("/"), line
            for leaf, _ in leaves(OmegaConf.to_container(file.config)):
                if leaf.partition(".")[0] != "defaults":
                    yield leaf, line


def _compose(overrides: Sequence[str]) -> DictConfig:
    loader = GlobalHydra.instance().config_loader()
    return loader.load_configuration("config", list(overrides), run_mode=RunMode.RUN)


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
    epochs = config.trainer.max_epochs
    if not isinstance(epochs, int) or epochs < 1:  # of null Lightning makes a thousand
        faults.append(
            f"trainer.max_epochs={'null' if epochs is None else epochs}: must be at least 1"
        )
    if faults:
        raise ConfigFault(faults)
