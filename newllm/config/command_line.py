"""All faults of a command line at once, before Hydra (which stops at the first) sees it."""

from __future__ import annotations

import argparse
import itertools
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
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from newllm.config.composed import composed_faults
from newllm.config.composing import conf_directory
from newllm.config.folders import folder_faults
from newllm.config.values import shown, value_faults

MOST_VALUES = 10_000  # of a sweep over one key
# Flags of Hydra that would replace the configuration, or go round it.
REFUSED = {
    "config_path": "--config-path: add a folder of your own by --config-dir",
    "package": "--package: the configuration has its own place",
    "experimental_rerun": "--experimental-rerun: give the same command again",
}
# Help, completion, or the configuration instead of a run.
HYDRA_QUESTIONS = (
    *("-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "--version"),
    *("-sc", "--shell-completion"),
)
OWN_SWEEPERS = ("basic", "each")  # which go through lists of values


class _Impossible(Exception):
    """Hydra cannot compose this."""


def command_line_faults(arguments: Sequence[str]) -> list[str]:
    """One line for each fault of a command line; empty if it can be composed and built.

    Of a sweep (`seed=1,2`) every value is checked on its own and the first ones together.
    """
    try:
        parsed, unknown = _parse_flags(arguments)
    except argparse.ArgumentError as error:
        return [str(error)]
    if asks_hydra(arguments):
        return []  # it shows what there is, faults and all
    faults = [
        f"{word}: unknown flag"
        if word.startswith("-")
        else f"{word}: a flag stands before it; flags go before all overrides or after them"
        for word in unknown
    ]
    faults += [fault for flag, fault in REFUSED.items() if getattr(parsed, flag)]
    if parsed.config_dir and not Path(parsed.config_dir).is_dir():
        return [*faults, f"--config-dir {parsed.config_dir}: no such folder"]
    name = parsed.config_name or "config"
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        if parsed.config_dir:
            folder = Path(parsed.config_dir).resolve()
            # Hydra wants its source of schemas to stay the last one.
            loader.get_search_path().prepend("command line", f"file://{folder}", "schema")
            loader.repository.initialize_sources(loader.get_search_path())  # type: ignore[attr-defined]
        overrides, unparsed = _parse(parsed.overrides, loader)
        try:
            return faults + unparsed + _override_faults(name, overrides, parsed.multirun)
        except _Impossible as error:
            return [*faults, *unparsed, *error.args]


def _parse_flags(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = get_args_parser()
    parser.exit_on_error = False
    return parser.parse_known_args(list(arguments))


def asks_hydra(arguments: Sequence[str]) -> bool:
    """Whether the command line is a question that Hydra answers by itself, not a run."""
    return any(word.partition("=")[0] in HYDRA_QUESTIONS for word in arguments)


def _override_faults(name: str, overrides: Sequence[Override], multirun: bool) -> list[str]:
    """The faults of words that could be read: of groups, then of values, then of all together."""
    faults, good = [], []
    for item in overrides:
        found = list(_sweep_faults(item, overrides))
        faults += found
        good += [] if found else [item]
    groups = [item for item in good if _options(item)]
    values = [item for item in good if item not in groups]
    found_in = {id(item): list(_option_faults(item)) for item in groups}
    # What a target takes decides which of its keys can be left out.
    targets = [item for item in values if item.key_or_group.endswith("._target_")]
    chosen = [item for item in groups if not found_in[id(item)]]
    targets = [item for item in targets if not item.is_delete()]
    try:
        config = _compose(name, _single([*chosen, *targets]))
    except _Impossible:
        config = _compose(name, _single(chosen))
    config = _without_hydra(config)
    found_in |= {id(item): list(value_faults(config, item, _values(item))) for item in values}
    faults += [fault for item in good for fault in found_in[id(item)]]
    good = [item for item in good if not found_in[id(item)]]
    config = _compose(name, _single(good))
    faults += composed_faults(_without_hydra(config), _single(good))
    in_sweep = multirun or _selected(config, "hydra.mode") == RunMode.MULTIRUN
    if not in_sweep:
        faults += list(_only_in_sweeps(good))
    key = "hydra.sweep.dir" if in_sweep else "hydra.run.dir"
    faults += _folder_faults(config, key)
    return faults + (list(_param_faults(config)) if in_sweep else [])


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration, with Hydra's own part of it.

    Raises:
        _Impossible: whatever Hydra has against it, in a line.
    """
    try:
        return compose(name, overrides=list(overrides), return_hydra_config=True)
    except Exception as error:  # it raises a dozen kinds for what a user may write
        raise _Impossible(_one_line(error)) from error


def _without_hydra(config: DictConfig) -> DictConfig:
    own = config.copy()
    with open_dict(own):
        del own["hydra"]
    return own


def _parse(words: Sequence[str], loader: ConfigLoader) -> tuple[list[Override], list[str]]:
    parser = OverridesParser.create(config_loader=loader)  # it looks up what a glob(...) matches
    overrides, faults = [], []
    for word in words:
        try:
            overrides += parser.parse_overrides([word])
        except Exception:  # its functions, such as range(...), raise what they like
            faults.append(f"{word}: not an override; write KEY=VALUE, quoting special characters")
    return overrides, faults


def _sweep_faults(item: Override, overrides: Sequence[Override]) -> Iterator[str]:
    """What is wrong with the values of a sweep, or with where they stand."""
    if not item.is_sweep_override():
        return
    key = item.key_or_group
    if key.partition(".")[0].partition("/")[0] == "hydra":
        yield f"{item.input_line}: takes one value; sweeps go over the experiment's own keys"
    elif not item.is_discrete_sweep():
        sweepers = [other.value() for other in overrides if other.key_or_group == "hydra/sweeper"]
        if not sweepers or sweepers[-1] in OWN_SWEEPERS:
            yield f"{item.input_line}: has no values to go through; list them, or use range(...)"
    else:
        number = sum(1 for _ in itertools.islice(_sweep_values(item), MOST_VALUES + 1))
        if number > MOST_VALUES:
            yield f"{item.input_line}: makes more than {MOST_VALUES} jobs"
        elif number == 0 and not _options(item):  # a group says what options there are
            yield f"{item.input_line}: has no value"


def _only_in_sweeps(overrides: Sequence[Override]) -> Iterator[str]:
    for item in overrides:
        if item.key_or_group in ("jobs", "only", "overwrite"):
            yield f"{item.input_line}: only sweeps read it; add -m or drop it"
    for item in overrides:
        if item.is_sweep_override():
            yield f"{item.input_line}: several values make a sweep; add -m"


def _selected(config: DictConfig, key: str) -> Any:
    """A value of Hydra's own.

    Raises:
        _Impossible: it refers to nothing.
    """
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException as error:
        raise _Impossible(f"{key}: {_one_line(error)}") from error


def _folder_faults(config: DictConfig, key: str) -> Iterator[str]:
    folder = _selected(config, key)
    if not isinstance(folder, str) or not folder:
        yield f"{key}={shown(folder)}: must be a folder"
    else:
        yield from folder_faults(key, folder)


def _param_faults(config: DictConfig) -> Iterator[str]:
    """The faults of what a sweep's file, or `hydra.sweeper.params` itself, goes over."""
    params = _selected(config, "hydra.sweeper.params") or {}
    words = [f"{key}={shown(value)}" for key, value in params.items()]
    overrides, faults = _parse(words, GlobalHydra.instance().config_loader())
    own = _without_hydra(config)
    for item in overrides:
        found = list(_sweep_faults(item, ()))
        if not found:
            found = list(
                _option_faults(item) if _options(item) else value_faults(own, item, _values(item))
            )
        faults += found
    yield from (f"hydra.sweeper.params: {fault}" for fault in faults)


def _sweep_values(item: Override) -> Iterator[Any]:
    try:
        yield from item.sweep_iterator()
    except (ValueError, TypeError, ArithmeticError):  # of a range that is none
        return


def _values(item: Override) -> list[Any]:
    """The values of an override: its one value, or all those of a sweep over a list or range."""
    if not item.is_sweep_override():
        return [item.value()]
    return list(_sweep_values(item)) if item.is_discrete_sweep() else []


def _single(overrides: Sequence[Override]) -> list[str]:
    """The overrides as a single run would have them: the first value of every sweep."""
    lines = []
    for item in overrides:
        if not item.is_sweep_override():
            lines.append(str(item.input_line))
        elif item.is_discrete_sweep():
            lines.append(f"{item.get_key_element()}={next(item.sweep_string_iterator())}")
    return lines


def _options(item: Override) -> list[str]:
    """The options of the group that an override chooses from; none if it names no group."""
    return sorted(GlobalHydra.instance().config_loader().get_group_options(item.key_or_group))


def _option_faults(item: Override) -> Iterator[str]:
    group = item.key_or_group
    if item.is_delete():
        yield f"{item.input_line}: cannot be left out; choose one of its options"
        return
    options = _options(item)
    if not _values(item):
        yield f"{item.input_line}: matches no option; there are {', '.join(options)}"
    for choice in _values(item):
        names = [shown(name) for name in (choice if isinstance(choice, list) else [choice])]
        if isinstance(choice, list) and group not in ("countermeasure", "logger"):
            yield f"{group}={shown(choice)}: takes one option, not a list"
        elif "none" in names and len(names) > 1:
            yield f"{group}={shown(choice)}: none stands alone; drop it or the others"
        elif len(set(names)) < len(names):
            yield f"{group}={shown(choice)}: names one twice"
        for name in names:
            if name not in options:
                yield f"{group}={name}: no such option; there are {', '.join(options)}"


def _one_line(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error).partition("\n    full_key:")[0]).strip()
    return re.sub(r"^In '[^']*': ", "", text)
