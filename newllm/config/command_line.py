"""All faults of a command line at once, before Hydra (which stops at the first) sees it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.build import TYPE_NAMES, conf_directory, takes_null
from newllm.config.composed import composed_faults

FILLED_IN = ("model.vocabulary_size",)  # null until the experiment is built
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, ValueError)


def command_line_faults(arguments: Sequence[str]) -> list[str]:
    """One line for each fault of a command line; empty if it can be composed and built.

    Of a sweep (`seed=1,2`) every value is checked on its own and the first ones together.
    """
    parsed, unknown = get_args_parser().parse_known_args(list(arguments))
    faults = [
        f"{word}: unknown flag"
        if word.startswith("-")
        else f"{word}: a flag stands before it; flags go before all overrides or after them"
        for word in unknown
    ]
    if parsed.config_dir and not Path(parsed.config_dir).is_dir():
        return [*faults, f"--config-dir {parsed.config_dir}: no such folder"]
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        if parsed.config_dir:
            folder = Path(parsed.config_dir).resolve()
            # Hydra wants its source of schemas to stay the last one.
            loader.get_search_path().prepend("command line", f"file://{folder}", "schema")
            loader.repository.initialize_sources(loader.get_search_path())  # type: ignore[attr-defined]
        overrides, unparsed = _parse(parsed.overrides, loader)
        faults += unparsed
        in_sweep = parsed.multirun or any(item.key_or_group == "sweep" for item in overrides)
        if not in_sweep:
            for item in overrides:
                if item.key_or_group in ("jobs", "overwrite"):
                    faults.append(f"{item.input_line}: only sweeps read it; add -m or drop it")
        several = [item for item in overrides if item.is_sweep_override() and not in_sweep]
        faults += [f"{item.input_line}: several values make a sweep; add -m" for item in several]
        chosen = [item for item in overrides if loader.get_group_options(item.key_or_group)]
        faults += [fault for item in chosen for fault in _option_faults(item)]
        good = [item for item in chosen if not list(_option_faults(item))]
        try:
            config = compose("config", overrides=_single(good))
        except COMPOSE_ERRORS as error:
            return [*faults, _one_line(error)]
        values = [item for item in overrides if item not in chosen]
        faults += [fault for item in values for fault in _value_faults(config, item)]
        good += [item for item in values if not list(_value_faults(config, item))]
        try:
            config = compose("config", overrides=_single(good))
        except COMPOSE_ERRORS as error:
            return [*faults, _one_line(error)]
        return faults + composed_faults(config, _single(good))


def _parse(words: Sequence[str], loader: ConfigLoader) -> tuple[list[Override], list[str]]:
    parser = OverridesParser.create(config_loader=loader)  # it looks up what a glob(...) matches
    overrides, faults = [], []
    for word in words:
        try:
            overrides += parser.parse_overrides([word])
        except HydraException:
            faults.append(f"{word}: not an override; write KEY=VALUE, quoting special characters")
    return overrides, faults


def _values(item: Override) -> list[Any]:
    """The values of an override: its one value, or all those of a sweep over a list or range."""
    if not item.is_sweep_override():
        return [item.value()]
    return list(item.sweep_iterator()) if item.is_discrete_sweep() else []


def _single(overrides: Sequence[Override]) -> list[str]:
    """The overrides as a single run would have them: the first value of every sweep."""
    lines = []
    for item in overrides:
        if not item.is_sweep_override():
            lines.append(str(item.input_line))
        elif item.is_discrete_sweep():
            lines.append(f"{item.key_or_group}={next(item.sweep_string_iterator())}")
    return lines


def _option_faults(item: Override) -> Iterator[str]:
    group = item.key_or_group
    if item.is_delete():
        yield f"{item.input_line}: cannot be left out; choose one of its options"
        return
    options = sorted(GlobalHydra.instance().config_loader().get_group_options(group))
    if not _values(item):
        yield f"{item.input_line}: matches no option; there are {', '.join(options)}"
    for choice in _values(item):
        names = [_shown(name) for name in (choice if isinstance(choice, list) else [choice])]
        if isinstance(choice, list) and group not in ("countermeasure", "logger"):
            yield f"{group}={_shown(choice)}: takes one option, not a list"
        elif "none" in names and len(names) > 1:
            yield f"{group}={_shown(choice)}: none stands alone; drop it or the others"
        elif len(set(names)) < len(names):
            yield f"{group}={_shown(choice)}: names one twice"
        for name in names:
            if name not in options:
                yield f"{group}={name}: no such option; there are {', '.join(options)}"


def _value_faults(config: DictConfig, item: Override) -> Iterator[str]:
    key = item.key_or_group
    if key in ("hydra.run.dir", "hydra.sweep.dir"):
        for value in _values(item):
            path = Path(str(value))
            if value is None:
                yield f"{key}=null: must be a folder"
            elif any(part.exists() and not part.is_dir() for part in (path, *path.parents)):
                yield f"{key}={value}: a file is in the way"
    if key.split(".")[0].split("/")[0] == "hydra":
        return
    if item.is_delete() and "." not in key:
        yield f"{item.input_line}: cannot be left out; set it instead"
        return
    if item.is_add():
        if key.partition(".")[0] not in config:
            yield f"+{key}: nothing reads it; drop it"
        return
    if source := _borrowed_from(config, key):
        yield f"{key}: stands at {source}; set it there"
        return
    parent, _, leaf = key.rpartition(".")
    holder = OmegaConf.select(config, parent) if parent else config
    if not isinstance(holder, DictConfig):
        yield f"{key}: unknown key; {parent} holds no keys"
    elif leaf not in holder.keys():  # noqa: SIM118  (`in` is false for a key whose value is ???)
        yield f"{key}: unknown key{_suggestion(holder, parent, leaf)}"
    elif not item.is_delete():
        default = holder[leaf]
        for value in _values(item):
            allows_null = value is None and _may_be_null(config, key)
            if not (allows_null or _has_type_of(default, value)):
                wanted = f"{_type_name(default)}, like the default {_shown(default)}"
                yield f"{key}={_shown(value)}: must be {wanted}"


def _may_be_null(config: DictConfig, key: str) -> bool:
    """Whether a value is of a part that a run may lack, or ends in arguments that may be None."""
    group, _, name = key.partition(".")
    if key == "schedule" or (group in ("logger", "callbacks") and "." not in name):
        return True
    places = [key, *(place for place, value in _leaves(config) if value == f"${{{key}}}")]
    holders = [(OmegaConf.select(config, place.rpartition(".")[0]), place) for place in places]
    ends = [
        place in FILLED_IN or takes_null(holder, place.rpartition(".")[2])
        for holder, place in holders
        if isinstance(holder, DictConfig) and "_target_" in holder
    ]
    return bool(ends) and all(ends)


def _leaves(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """All values with their dotted names, unresolved."""
    waiting = [("", OmegaConf.to_container(config, resolve=False))]
    while waiting:
        name, content = waiting.pop()
        if isinstance(content, dict):
            waiting += [(f"{name}.{key!s}".lstrip("."), value) for key, value in content.items()]
        else:
            yield name, content


def _borrowed_from(config: DictConfig, key: str) -> str | None:
    """Where a key really stands, if a node above it is a ${...}: Hydra cannot set it here."""
    names = key.split(".")
    node: Any = OmegaConf.to_container(config, resolve=False)
    for depth, name in enumerate(names[:-1]):
        node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, str) and node.startswith("${"):
            return ".".join((node[2:-1], *names[depth + 1 :]))
    return None


def _suggestion(holder: DictConfig, parent: str, leaf: str) -> str:
    keys = [str(name) for name in holder if not str(name).startswith("_")]
    if close := difflib.get_close_matches(leaf, keys, n=1):
        return f"; did you mean {f'{parent}.{close[0]}'.lstrip('.')}?"
    return f"; {parent or 'the configuration'} has {', '.join(keys) or 'no keys'}"


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


def _shown(value: Any) -> str:
    if isinstance(value, list | ListConfig):
        return f"[{','.join(_shown(item) for item in value)}]"
    if isinstance(value, DictConfig):
        return f"{{{','.join(str(key) for key in value)}}}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _one_line(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return re.sub(r"^In '[^']*': ", "", text)
