"""Faults that show only in the composed configuration: contradictions and unread choices."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.budget import PAIRS, decided_sizes
from newllm.config.build import ConfigFault, target_faults
from newllm.config.leftovers import (
    chose_another_model,
    read_file,
    read_variants,
    without_leftovers,
)
from newllm.config.loading import loading
from newllm.config.naming import OF_A_SWEEP, STUDY, VARIANT, beside_variant, split
from newllm.config.origins import (
    descend,
    leaves,
    origin,
    overlap,
    raw,
    read_nodes,
)
from newllm.config.ranges import number_faults

# What train.py builds or reads. Any other node is a part (gating, recipe, countermeasures ...):
# it acts only where one of these refers to it as ${part}.
BUILT = ("model", "budget", "data", "optimizer", "schedule", "trainer", "logger", "callbacks")
READ = (*BUILT, "recipe.gradient_clip", "recipe.name")
SETTINGS = (
    *("seed", "name", "threads", "plan", "keep_last", "overwrite", "jobs", "test"),
    "checkpoint_steps",
    *("trusted_packages", "only", "study", "variant", "trial", "hydra"),
)
# What may stand before a variant, and no name of a run tells.
UNNAMED = ("hydra", *OF_A_SWEEP)
# Groups that bundle other choices: nothing reads them by their name.
BUNDLES = ("experiment", "recipe", "countermeasure", "sweep")


def composed_faults(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """One line for each fault of a composed configuration.

    Needs Hydra to be initialised, since it looks into the chosen experiment's own file.

    Args:
        config: as composed, interpolations unresolved.
        overrides: what was explicitly chosen on the command line.
    """
    return [*choice_faults(config, overrides), *class_faults(config, overrides)]


def choice_faults(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Those that can be told without importing what would be built."""
    if faults := _unreadable(config):
        return faults  # nothing more can be said of such values
    config = without_leftovers(config, overrides)
    beside = beside_variant(overrides)  # which may replace what the variant itself chose
    return [
        *_setting_faults(config),
        *_variant_faults(overrides),
        *_corpus_contradictions(config),
        *_unread_choices(config, overrides),
        *_idle_choices(config, beside),
        *number_faults(config),
    ]


def class_faults(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Those that the classes tell which would be built: they do not take what they are given."""
    if _unreadable(config):
        return []
    with loading():
        return list(_target_faults(without_leftovers(config, overrides), overrides))


def _unreadable(config: DictConfig) -> list[str]:
    return list(_unresolved(config)) or list(_broken_parts(config))


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
            yield f"{key}=???: has no value; set it"
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
            yield f"{part}._target_: is missing; it names the class to build"


def _target_faults(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """What cannot be built, or does not take its arguments, and where these come from."""
    trusted = config.trusted_packages or ()
    chosen = dict(map(split, overrides))
    content = raw(config)
    for part in BUILT:
        for fault in target_faults(config[part], part, trusted):
            key, _, rest = fault.partition(": ")
            source, _, name = origin(content, key).partition(".")
            if source == "countermeasures":
                yield f"{key} (from countermeasure={name.partition('.')[0]}): {rest}"
            elif f"{key.rpartition('.')[0]}._target_" in chosen and key not in chosen:
                yield f"{fault}; remove it: '~{key}'"  # it was an argument of another class
            else:
                yield fault


def _variant_faults(overrides: Sequence[str]) -> Iterator[str]:
    """A line if a run would pass for a variant of a study and is not made as its file says.

    A study whose file is not found has no say, so that a run can be repeated without it.
    """
    lines = [line for line in overrides if split(line)[0].partition(".")[0] not in UNNAMED]
    ends = [
        line for line in lines if split(line)[0] in (STUDY, VARIANT) and split(line)[1] != "null"
    ]
    if not ends:
        return
    if [split(line)[0] for line in ends] != [STUDY, VARIANT] or lines[0] != ends[0]:
        yield f"{' '.join(ends)}: must be study=STUDY, the lines of a variant, variant=VARIANT"
        return
    study, variant = (split(line)[1] for line in ends)
    if not (variants := read_variants(study)):
        return
    made_of = lines[1 : lines.index(ends[1])]
    if variant not in variants:
        yield f"variant={variant}: sweep={study} has no such variant"
    elif not variants[variant]:
        yield f"variant={variant}: is an experiment; use experiment={variant} instead"
    elif made_of != variants[variant]:
        wanted = " ".join(variants[variant])
        yield f"variant={variant}: sweep={study} defines it as {wanted}; remove study= and variant="


def _corpus_contradictions(config: DictConfig) -> Iterator[str]:
    nodes = {name: node for name, node in config.countermeasures.items() if node}
    wanted = {name: node.corpus for name, node in nodes.items() if "corpus" in node}
    if len(set(wanted.values())) > 1:
        wishes = " and ".join(f"{name} wants data={corpus}" for name, corpus in wanted.items())
        yield f"countermeasure=[{','.join(wanted)}]: {wishes}; keep one of them"
        return
    for name, corpus in wanted.items():
        if corpus != (there := config.data.get("corpus")):
            contradiction = f"requires data={corpus}, but data={there} is set"
            yield f"countermeasure={name} {contradiction}; remove one of the two"


def _idle_choices(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Sizes that a budget decides on; settings of a budget, logger or callback that is none."""
    decided = decided_sizes(config.budget)
    for key, value in map(split, overrides):
        part, _, name = key.partition(".")
        first = name.partition(".")[0]
        if part == "model" and name in decided:
            yield f"{key}={value}: is determined by {decided[name]}; remove one of the two"
        elif part == "budget":
            needed = [what for what, names in PAIRS if first in (names, "step")]
            if needed and all(config.budget[what] is None for what in needed):
                wishes = " or ".join(f"budget.{what}" for what in needed)
                told = f"has no effect without {wishes}; set one or remove it"
                yield f"{key}={value}: {told}"
        elif part in ("logger", "callbacks") and name:
            node = descend(raw(config), f"{part}.{first}")
            if isinstance(node, dict) and "_target_" not in node:
                yield f"{key}={value}: has no effect, since {part} has no {first}; remove it"


def _unread_choices(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Choices that nothing reads.

    What an experiment's file sets may be replaced by a value on the command line, as
    `trainer.max_epochs=5` or `trainer=smoke` replaces `recipe.max_epochs`: that is no fault.
    """
    read = read_nodes(config, READ)
    for key, source in _explicit_choices(beside_variant(overrides)):
        if source.startswith("experiment=") and chose_another_model(overrides):
            continue  # what the file chose for its own model is left out
        if key.split(".")[0] in (*SETTINGS, *BUILT) or key in BUNDLES:
            continue
        if not _is_read(key, read) and not _is_read(key, _read_without_values(source, overrides)):
            chosen = source if source.startswith(key) else f"{key} (from {source})"
            # With nothing else chosen than what decides on the model, would it be read?
            deciding = [line for line in overrides if line.startswith(("model=", "experiment="))]
            alone = _compose([*deciding, source]) if source not in deciding else config
            if _is_read(key, read_nodes(alone, READ)):
                yield f"{chosen}: is replaced by another choice; remove one of the two"
            else:
                yield f"{chosen}: is not used by the chosen model; remove it"


def _is_read(key: str, read: Collection[str]) -> bool:
    return any(overlap(key, name) for name in read)


def _read_without_values(source: str, overrides: Sequence[str]) -> Collection[str]:
    """What would be read of an experiment's file without single values, or a trainer, beside it."""
    if not source.startswith("experiment="):
        return ()
    keys = [(split(line)[0], line) for line in overrides]
    groups = [line for key, line in keys if "." not in key and key != "trainer"]
    return read_nodes(_compose(groups), READ)


def _explicit_choices(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a chosen key and where it was chosen: an override, or an experiment's file."""
    for line in overrides:
        key, value = split(line)
        yield key, line
        content = read_file(f"experiment/{value}") if key == "experiment" else {}
        for default in content.pop("defaults", ()):
            if isinstance(default, dict):
                yield split(next(iter(default)).removeprefix("override /"))[0], line
        yield from ((name, line) for name, _ in leaves(content))


def _compose(overrides: Sequence[str]) -> DictConfig:
    loader = GlobalHydra.instance().config_loader()
    return loader.load_configuration("config", list(overrides), run_mode=RunMode.RUN)


def check_settings(config: DictConfig) -> None:
    """Check the settings that belong to no object.

    Raises:
        ConfigFault: if one of them is impossible.
    """
    if faults := list(_setting_faults(config)):
        raise ConfigFault(faults)


def _setting_faults(config: DictConfig) -> Iterator[str]:
    cores = os.cpu_count() or 1
    ranges = {"seed": (0, 2**32 - 1), "threads": (1, cores), "jobs": (1, cores)}
    ranges["checkpoint_steps"] = (1, 2**63 - 1)
    for key, (smallest, largest) in ranges.items():
        value = config[key]
        is_number = isinstance(value, int) and not isinstance(value, bool)
        may_be_null = key != "seed" and value is None
        if not (is_number and smallest <= value <= largest) and not may_be_null:
            yield f"{key}={value}: must be a whole number from {smallest} to {largest}"
    epochs = config.trainer.get("max_epochs")
    if not isinstance(epochs, int) or epochs < 1:  # of null Lightning makes a thousand
        yield f"trainer.max_epochs={'null' if epochs is None else epochs}: must be at least 1"
