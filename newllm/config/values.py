"""Faults of single overrides: unknown keys, wrong types, keys that cannot be left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.build import TYPE_NAMES
from newllm.config.origins import descend, origin, raw
from newllm.config.suggestions import suggest

ENTRIES = ("logger", "callbacks")  # parts with entries, each of which may be left out
CLASS_ARGUMENTS = ("optimizer", "schedule")  # parts with arguments that another class may lack


def value_faults(config: DictConfig, item: Override, values: Sequence[Any]) -> Iterator[str]:
    """The faults of an override of a key.

    Args:
        config: composed from the chosen groups, without this override.
        item: the override.
        values: all values that it would set.
    """
    key, line, content = item.key_or_group, item.input_line, raw(config)
    if "/" in key or "@" in str(line).partition("=")[0]:
        yield f"{line}: no such group"
        return
    parent, _, leaf = key.rpartition(".")
    holder = descend(content, parent) if parent else content
    exists = isinstance(holder, dict) and leaf in holder
    source = origin(content, parent) if parent else ""
    default = select(config, key)
    if item.is_delete():
        if not exists and source == parent:
            yield _unknown(config, key)
        elif item.value() is not None:
            yield f"{line}: write ~{key} to remove it"
        elif not can_be_left_out(key):
            yield f"{line}: cannot be removed; set it instead"
    elif item.is_add() and exists and default is not None:
        yield f"{line}: already exists; remove the +"
    elif (item.is_add() or item.is_force_add()) and not exists:
        if key.partition(".")[0] not in content:
            meant = suggest(config, key)
            yield f"+{key}: unknown key; " + (f"did you mean {meant}?" if meant else "remove it")
    elif source != parent:
        yield f"{key}: is set by {source}.{leaf}; set that instead"
    elif not exists:
        yield _unknown(config, key)
    else:
        for value in values:
            if not _fits(key, default, value):
                wanted = f"{_type_name(default)}, like the default {shown(default)}"
                yield f"{key}={shown(value)}: must be {wanted}"


def can_be_left_out(key: str) -> bool:
    """Whether `~key` is allowed: for no setting, and no argument of a class of this package."""
    part, _, name = key.partition(".")
    if part in ENTRIES:
        return bool(name) and "." not in name
    return part in CLASS_ARGUMENTS and bool(name) and not name.endswith("_target_")


def select(config: DictConfig, key: str) -> Any:
    """The value of a key; None if it cannot be resolved."""
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None


def _unknown(config: DictConfig, key: str) -> str:
    parent = key.rpartition(".")[0]
    if meant := suggest(config, key):
        return f"{key}: unknown key; did you mean {meant}?"
    holder = descend(raw(config), parent) if parent else raw(config)
    keys = [str(name) for name in holder if name[0] != "_"] if isinstance(holder, dict) else []
    found = f"has {', '.join(keys)}" if keys else "holds no keys"
    if not keys and isinstance(holder, dict) and "_target_" in holder:
        found += f"; write +{key}=VALUE for an argument of its class"
    return f"{key}: unknown key; {parent or 'the configuration'} {found}"


def _fits(key: str, default: Any, value: Any) -> bool:
    """Whether a value has the type of the default; the classes check null and what was null."""
    if default is None or (isinstance(value, str) and value.startswith("${")):
        return True
    if value is None:
        part, _, name = key.partition(".")
        is_entry = part in ENTRIES and "." not in name
        is_argument = bool(name) and not isinstance(default, DictConfig | ListConfig)
        return key == "schedule" or is_entry or is_argument
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, int | float):
        return isinstance(value, int if isinstance(default, int) else int | float)
    if isinstance(default, str):
        return not isinstance(value, list | dict)
    return isinstance(value, list if isinstance(default, ListConfig) else dict)


def _type_name(default: Any) -> str:
    kinds = {**TYPE_NAMES, ListConfig: "a list", DictConfig: "a mapping"}
    return next(name for kind, name in kinds.items() if isinstance(default, kind))


def shown(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, list | ListConfig):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, dict | DictConfig):
        return f"{{{','.join(map(str, value))}}}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
