"""Faults that show only in the composed configuration: contradictions and unread choices."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.budget import PAIRS, decided_sizes
from newllm.config.build import ConfigFault, target_faults
from newllm.config.loading import loading
from newllm.config.naming import LARGEST_SEED, OF_A_SWEEP, STUDY, VARIANT, beside_variant, split
from newllm.config.origins import descend, leaves, origin, overlap, raw, read_nodes
from newllm.config.precision import precision_name
from newllm.config.ranges import number_faults
from newllm.config.settling import (
    chose_another_model,
    read_file,
    read_variants,
    settled,
)
from newllm.config.values import can_be_left_out, shown

# What train.py builds or reads. Any other node is a part (gating, recipe, countermeasures ...):
# it acts only where one of these refers to it as ${part}.
BUILT = ("model", "budget", "data", "optimizer", "schedule", "trainer", "logger", "callbacks")
READ = (*BUILT, "recipe.gradient_clip", "recipe.name", "recipe.base_fan_in")
SETTINGS = (
    *("seed", "name", "threads", "plan", "keep_last", "overwrite", "jobs", "test"),
    "seeds_at_once",
    *("max_tokens", "checkpoint_steps", "trusted_packages", "only", "study", "variant", "trial"),
    *("examination", "hydra"),
)
MOST_SEEDS = 1024  # at once
# Groups that bundle other choices: nothing reads them by their name.
BUNDLES = ("experiment", "recipe", "countermeasure", "sweep", "scale")


def composed_faults(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """One line for each fault of a composed configuration.

    Hydra must be initialised, since files of the configuration are read.

    Args:
        config: as composed, interpolations unresolved.
        overrides: what was explicitly chosen on the command line.
    """
    return [*choice_faults(config, overrides), *class_faults(config, overrides)]


def choice_faults(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The faults that show without importing the classes that would be built."""
    if faults := _unreadable(config):
        return faults
    config = settled(config, overrides)
    return [
        *_setting_faults(config),
        *_variant_faults(overrides),
        *_corpus_contradictions(config),
        *_unread_choices(config, overrides),
        *_idle_choices(config, beside_variant(overrides)),
        *number_faults(config),
    ]


def class_faults(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Targets that cannot be built, and arguments that they do not take."""
    if _unreadable(config):
        return []
    config, chosen = settled(config, overrides), dict(map(split, overrides))
    content, faults = raw(config), []
    with loading():
        for part in BUILT:
            for fault in target_faults(config[part], part, config.trusted_packages or ()):
                key, _, rest = fault.partition(": ")
                source, _, name = origin(content, key).partition(".")
                if source == "countermeasures":
                    fault = f"{key} (from countermeasure={name.partition('.')[0]}): {rest}"
                elif f"{key.rpartition('.')[0]}._target_" in chosen and can_be_left_out(key):
                    fault += f"; remove it: '~{key}'"  # an argument of another class
                faults.append(fault)
    return faults


def _unreadable(config: DictConfig) -> list[str]:
    return list(_unresolved(config)) or list(_broken_parts(config))


def _unresolved(config: DictConfig) -> Iterator[str]:
    """Values that refer to nothing, and those that are still to be given."""
    content = raw(config)
    told = set()
    for name, value in leaves(content):
        key = origin(content, name)  # the last of a chain of references tells its fault for all
        key = name if descend(content, key) is None else key
        if key in told:
            continue
        told.add(key)
        if value == "???":
            yield f"{key}=???: has no value; set it"
        elif "${" in str(value):
            try:
                node = OmegaConf.select(config, key)
                OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else None
            except OmegaConfBaseException as error:
                reason = str(error).partition("\n")[0]
                yield f"{key}={shown(descend(content, key))}: {reason}"


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
            yield f"{part}._target_: is missing; it says what is built"


def _variant_faults(overrides: Sequence[str]) -> Iterator[str]:
    """A line if a run would pass for a variant of a study and is not made as its file says.

    A study whose file is not found has no say, so that a run can be repeated without it.
    """
    unnamed = ("hydra", *OF_A_SWEEP)  # may stand before a variant
    lines = [line for line in overrides if split(line)[0].partition(".")[0] not in unnamed]
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
    if variant not in variants:
        yield f"variant={variant}: sweep={study} has no such variant"
    elif not variants[variant]:
        yield f"variant={variant}: is an experiment; use experiment={variant} instead"
    elif lines[1 : lines.index(ends[1])] != variants[variant]:
        wanted = " ".join(variants[variant])
        yield f"variant={variant}: sweep={study} defines it as {wanted}; remove study= and variant="


def _corpus_contradictions(config: DictConfig) -> Iterator[str]:
    wanted = {
        name: node.corpus
        for name, node in config.countermeasures.items()
        if "corpus" in (node or ())
    }
    if len(set(wanted.values())) > 1:
        wishes = " and ".join(f"{name} wants data={corpus}" for name, corpus in wanted.items())
        yield f"countermeasure=[{','.join(wanted)}]: {wishes}; keep one of them"
        return
    for name, corpus in wanted.items():
        if corpus != (there := config.data.get("corpus")):
            other = f"data={there} is" if there else "other data are"
            yield (
                f"countermeasure={name} requires data={corpus}, but {other} set; "
                "remove one of the two"
            )


def _idle_choices(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Values that a budget decides on; settings of a budget, logger or callback that is none."""
    decided = decided_sizes(config.budget)
    for key, value in map(split, overrides):
        part, _, name = key.partition(".")
        first = name.partition(".")[0]
        if config.get("max_tokens") is not None and _sets_length(key, value):
            yield f"{key}={value}: max_tokens sets the length of the run; remove one of the two"
        elif part == "model" and name in decided:
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


def _sets_length(key: str, value: str) -> bool:
    """Whether a choice sets the epochs or steps of a run; an experiment's own may be replaced."""
    if key == "trainer":
        content = read_file(f"trainer/{value}")
        return any(
            isinstance(content.get(name), int) for name in ("max_epochs", "limit_train_batches")
        )
    return key in ("trainer.max_steps", "trainer.max_epochs", "recipe.max_epochs")


def _unread_choices(config: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """Choices that nothing reads.

    An experiment's file is looked at only where it stands alone: single values, a trainer or a
    model beside it may replace what it says.
    """
    read = read_nodes(config, READ)
    own = [(split(line)[0], line) for line in beside_variant(overrides)]
    is_changed = chose_another_model(overrides) or any(
        "." in key or key == "trainer" for key, _ in own
    )
    chosen = list(own)
    for key, line in own:
        if key == "experiment" and not is_changed:
            content = read_file(f"experiment/{split(line)[1]}")
            groups = [next(iter(item)) for item in content.pop("defaults", ()) if item != "_self_"]
            names = [split(name.removeprefix("override /"))[0] for name in groups]
            chosen += [(name, line) for name in (*names, *(name for name, _ in leaves(content)))]
    for key, line in chosen:
        is_unread = not any(overlap(key, name) for name in read)
        if is_unread and key.split(".")[0] not in SETTINGS and key not in BUNDLES:
            told = line if line.startswith(key) else f"{key} (from {line})"
            yield f"{told}: is not used with the other choices; remove it"


def check_settings(config: DictConfig) -> None:
    """Check the settings that belong to no object.

    Raises:
        ConfigFault: one of them is impossible.
    """
    if faults := list(_setting_faults(config)):
        raise ConfigFault(faults)


def _setting_faults(config: DictConfig) -> Iterator[str]:
    cores = os.cpu_count() or 1
    ranges = {"seed": (0, LARGEST_SEED), "threads": (1, cores), "jobs": (1, cores)}
    ranges |= {"checkpoint_steps": (1, 2**63 - 1), "seeds_at_once": (1, MOST_SEEDS)}
    for key, (smallest, largest) in ranges.items():
        value = config.get(key, 1)  # older runs lack one
        is_number = isinstance(value, int) and not isinstance(value, bool)
        may_be_null = key not in ("seed", "seeds_at_once") and value is None
        if not (is_number and smallest <= value <= largest) and not may_be_null:
            yield f"{key}={value}: must be a whole number from {smallest} to {largest}"
    if config.get("seeds_at_once", 1) != 1 and config.trainer.get("devices", 1) != 1:
        yield (
            f"seeds_at_once={config.seeds_at_once}: takes one device, but trainer.devices="
            f"{config.trainer.devices}; remove one of the two"
        )
    max_tokens = config.get("max_tokens")  # older runs have none
    is_number = isinstance(max_tokens, int | float) and not isinstance(max_tokens, bool)
    if max_tokens is not None and not (is_number and 1 <= max_tokens < math.inf):
        yield f"max_tokens={shown(max_tokens)}: must be a number of at least 1, or null"
    for key in ("name", "only", STUDY, VARIANT, "trial"):
        if OmegaConf.is_config(config[key]):
            yield f"{key}={shown(config[key])}: must be a word"
    if not all(isinstance(package, str) for package in config.trusted_packages or ()):
        yield f"trusted_packages={shown(config.trusted_packages)}: must be a list of names"
    try:
        precision_name(config.trainer.get("precision"))
    except ValueError as error:
        yield str(error)
    # Lightning checks no types, and of max_epochs=null it makes a thousand.
    for key, smallest, may_be_null in (
        ("max_epochs", 1, False),
        ("max_steps", -1, False),
        ("devices", 1, False),
        ("accumulate_grad_batches", 1, True),
        ("check_val_every_n_epoch", 1, True),
    ):
        value = config.trainer.get(key, smallest)
        if not (type(value) is int and value >= smallest) and not (may_be_null and value is None):
            yield f"trainer.{key}={shown(value)}: must be a whole number from {smallest}"
