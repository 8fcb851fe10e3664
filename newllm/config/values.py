"""Faults of single values: of keys that do not exist, of a wrong type, or left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.build import TYPE_NAMES, arguments_of, takes_null
from newllm.config.origins import descend, leaves, origin, raw
from newllm.config.suggestions import suggest

FILLED_IN = ("model.vocabulary_size",)  # null until the experiment is built
PARTS_AT_WILL = ("logger", "callbacks")  # a run may lack any of them


def value_faults(config: DictConfig, item: Override, values: Sequence[Any]) -> Iterator[str]:
    """The faults of an override of a key.

    Args:
        config: composed from the chosen groups, without this override.
        item: the override.
        values: all that it would set.
    """
    key = item.key_or_group
    content = raw(config)
    if "/" in key or "@" in str(item.input_line).partition("=")[0]:
        yield f"{item.input_line}: no such group"
        return
    parent, _, leaf = key.rpartition(".")
    holder = descend(content, parent) if parent else content
    exists = isinstance(holder, dict) and leaf in holder
    if item.is_delete():
        if not exists and not _borrowed_from(config, key):
            yield _unknown(config, key)
        elif item.value() not in (None, there := _default(config, key)):
            yield f"{item.input_line}: the value is {shown(there)}; write ~{key} to remove it"
        else:
            yield from _deletion_faults(config, item)
    elif item.is_add() and exists and _default(config, key) is not None:
        yield f"{item.input_line}: already exists; remove the +"
    elif (item.is_add() or item.is_force_add()) and not exists:
        if key.partition(".")[0] not in content:
            meant = suggest(config, key)
            yield f"+{key}: unknown key; " + (f"did you mean {meant}?" if meant else "drop it")
    elif source := _borrowed_from(config, key):
        yield f"{key}: is an alias of {source}; set that instead"
    elif not exists:
        yield _unknown(config, key)
    else:
        default = _default(config, key)
        for value in values:
            if not ((value is None and _may_be_null(config, key)) or _has_type_of(default, value)):
                wanted = f"{_type_name(default)}, like the default {shown(default)}"
                yield f"{key}={shown(value)}: must be {wanted}"


def _default(config: DictConfig, key: str) -> Any:
    """What stands there; None where that cannot be told yet."""
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
    return f"{key}: unknown key; {parent or 'the configuration'} {found}"


def _deletion_faults(config: DictConfig, item: Override) -> Iterator[str]:
    """Only what nothing would build, or take, can be left out: else a default would come in."""
    key = item.key_or_group
    part, _, name = key.partition(".")
    if part in PARTS_AT_WILL and name and "." not in name:
        return
    parent, _, leaf = key.rpartition(".")
    known = arguments_of(OmegaConf.select(config, parent)) if parent else None
    if known is None or leaf in known or leaf.startswith("_"):
        yield f"{item.input_line}: cannot be removed; set it instead"


def _may_be_null(config: DictConfig, key: str) -> bool:
    """Whether a value is of a part that a run may lack, or ends in arguments that may be None."""
    group, _, name = key.partition(".")
    if key == "schedule" or (group in PARTS_AT_WILL and "." not in name):
        return True
    content = raw(config)
    places = [key, *(place for place, value in leaves(content) if value == f"${{{key}}}")]
    holders = [(OmegaConf.select(config, place.rpartition(".")[0]), place) for place in places]
    ends = [
        place in FILLED_IN or takes_null(holder, place.rpartition(".")[2])
        for holder, place in holders
        if isinstance(holder, DictConfig) and _default(holder, "_target_")
    ]
    return bool(ends) and all(ends)


def _borrowed_from(config: DictConfig, key: str) -> str | None:
    """Where a key really stands, if a node above it is a ${...}: Hydra cannot set it here."""
    parent, _, leaf = key.rpartition(".")
    holder = origin(raw(config), parent) if parent else ""
    return f"{holder}.{leaf}" if holder != parent else None


def _has_type_of(default: Any, value: Any) -> bool:
    """Whether a value has the type of the default it replaces; a default of null takes anything."""
    if default is None or (isinstance(value, str) and value.startswith("${")):
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, int | float):
        return isinstance(value, int if isinstance(default, int) else int | float)
    if isinstance(default, str):
        return not isinstance(value, list | dict | None)
    if isinstance(default, ListConfig):
        return isinstance(value, list)
    return isinstance(value, dict)


def _type_name(default: Any) -> str:
    kinds = {**TYPE_NAMES, ListConfig: "a list", DictConfig: "a mapping"}
    return next(name for kind, name in kinds.items() if isinstance(default, kind))


def shown(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, list | ListConfig):
        return f"[{','.join(shown(item) for item in value)}]"
    if isinstance(value, dict | DictConfig):
        return f"{{{','.join(str(key) for key in value)}}}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
