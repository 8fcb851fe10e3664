"""The overrides of a command line or a job: each is checked, then set.

Hydra composes the chosen groups. The values of keys are set here, so that all faults are found at
once, and so that jobs with the same groups are composed once.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from newllm.config.build import ConfigFault
from newllm.config.composed import choice_faults, class_faults
from newllm.config.settling import settled
from newllm.config.values import select, shown, value_faults

MOST_VALUES = 10_000  # of a sweep over one key


@dataclass(frozen=True)
class Composition:
    """What some overrides compose.

    Attributes:
        config: with Hydra's own part, without the overrides that have a fault.
        overrides: those without a fault, as a single run would have them.
        own_faults: one line for each fault of a single override.
        is_settled: whether the defaults told the type of every value. If not, only the classes
            that would be built can.
    """

    config: DictConfig
    overrides: tuple[str, ...]
    own_faults: list[str]
    is_settled: bool

    def faults(self, is_faulty: bool) -> list[str]:
        """Faults that show in all choices together; `is_faulty` if there are others already."""
        own = own_part(self.config)
        faults = choice_faults(own, self.overrides)
        if not (is_faulty or faults) or not self.is_settled:  # importing the classes takes seconds
            faults += class_faults(own, self.overrides)
        return faults


class Composer:
    """Composes jobs from the same folders, each choice of groups once."""

    def __init__(self, loader: ConfigLoader, name: str = "config") -> None:
        self._loader, self._name = loader, name
        self._parser = OverridesParser.create(config_loader=loader)  # for what a glob(...) matches
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def parse(self, lines: Sequence[str]) -> tuple[list[Override], list[str]]:
        """The overrides that can be read, and the faults of the others."""
        overrides, faults = [], []
        for line in lines:
            try:
                (item,) = self._parser.parse_overrides([line])
                _values(item)
                overrides.append(item)
            except Exception:  # functions such as range(...) raise many kinds
                form = "KEY=VALUE, quoting special characters"
                faults.append(f"{line}: not an override; write {form}")
        return overrides, faults

    def compose(self, overrides: Sequence[Override]) -> Composition:
        """Compose a job. Of a sweep over several values, all are checked and the first is set.

        Raises:
            ConfigFault: Hydra cannot compose the chosen groups.
        """
        faults = {id(item): list(self._early_faults(item)) for item in overrides}
        groups = [item for item in overrides if self._options(item) or is_hydras(item)]
        chosen = [item for item in groups if not faults[id(item)]]
        config = copy.deepcopy(self._compose_groups(tuple(map(_first_of, chosen))))
        is_settled = True
        for item in overrides:
            if item not in groups and not faults[id(item)]:
                faults[id(item)] += value_faults(config, item, _values(item))
                if not faults[id(item)] and _values(item):
                    is_settled &= _is_typed(config, item)
                    faults[id(item)] += _set(config, item)
        taken = [item for item in overrides if not faults[id(item)] and _values(item)]
        _tell_hydra(config, [item for item in taken if not is_hydras(item)])
        lines = list(itertools.chain(*faults.values()))
        return Composition(config, tuple(map(_first_of, taken)), lines, is_settled)

    def job(self, lines: Sequence[str]) -> DictConfig:
        """The experiment of a job, without Hydra's own part.

        Raises:
            ConfigFault: with a line for each fault.
        """
        overrides, faults = self.parse(lines)
        found = self.compose(overrides)
        faults += found.own_faults
        if faults := [*faults, *found.faults(is_faulty=bool(faults))]:
            raise ConfigFault(faults)
        return settled(own_part(found.config), found.overrides)

    def check(self, config: DictConfig, item: Override) -> list[str]:
        """The faults of an override of a group or a key, for each of its values."""
        faults = list(self._early_faults(item))
        if not faults and not self._options(item):
            faults += value_faults(config, item, _values(item))
        return faults

    def _compose_groups(self, lines: tuple[str, ...]) -> DictConfig:
        if lines not in self._composed:
            try:
                self._composed[lines] = self._loader.load_configuration(
                    self._name, list(lines), RunMode.RUN
                )
            except Exception as error:  # a user's own files raise a dozen kinds
                reasons = [error, error.__cause__] if error.__cause__ else [error]
                raise ConfigFault([": ".join(map(hydras_reason, reasons))]) from error
        return self._composed[lines]

    def _options(self, item: Override) -> list[str]:
        """The options of the group that an override chooses from; none if it names no group."""
        return sorted(self._loader.get_group_options(item.key_or_group))

    def _early_faults(self, item: Override) -> Iterator[str]:
        """Faults that show without composing anything."""
        line, group, options = item.input_line, item.key_or_group, self._options(item)
        if item.is_sweep_override() and (is_hydras(item) or group == "sweep"):
            yield f"{line}: takes one value; sweeps are over keys of the experiment"
        elif len(_values(item)) > MOST_VALUES:
            yield f"{line}: makes more than {MOST_VALUES} jobs"
        elif options and item.is_delete():
            yield f"{line}: cannot be removed; choose one of its options"
        elif item.is_discrete_sweep() and not _values(item):
            there = f"matches no option; options: {', '.join(options)}"
            yield f"{line}: {there if options else 'has no value'}"
        elif options:
            for choice in _values(item):
                yield from _option_faults(group, choice, options)


def _option_faults(group: str, choice: Any, options: Sequence[str]) -> Iterator[str]:
    names = [shown(name) for name in (choice if isinstance(choice, list) else [choice])]
    if isinstance(choice, list) and group not in ("countermeasure", "logger"):
        yield f"{group}={shown(choice)}: takes one option, not a list"
    elif "none" in names and len(names) > 1:
        yield f"{group}={shown(choice)}: none excludes all others; remove it or the others"
    elif len(set(names)) < len(names):
        yield f"{group}={shown(choice)}: lists an option twice"
    for name in names:
        if name not in options:
            yield f"{group}={name}: no such option; options: {', '.join(options)}"


def own_part(config: DictConfig) -> DictConfig:
    """A configuration without Hydra's own part."""
    own = copy.deepcopy(config)
    with open_dict(own):
        del own["hydra"]
    return own


def hydras_reason(error: BaseException) -> str:
    """The message of an exception of Hydra's in one line."""
    text = re.sub(r"\s+", " ", str(error).partition("\n    full_key:")[0]).strip()
    return re.sub(r"^In '[^']*': ", "", text)


def is_hydras(item: Override) -> bool:
    """Whether an override is of Hydra's own part."""
    return re.split("[./]", item.key_or_group)[0] == "hydra"


def _tell_hydra(config: DictConfig, overrides: Sequence[Override]) -> None:
    """Note the overrides where Hydra, which did not set all of them, would."""
    form = config.hydra.job.config.override_dirname
    named = [_first_of(item) for item in overrides if item.key_or_group not in form.exclude_keys]
    name = form.item_sep.join(sorted(named)).replace("=", form.kv_sep)
    config.hydra.job.override_dirname = name
    config.hydra.overrides.task = list(map(_first_of, overrides))


def _set(config: DictConfig, item: Override) -> list[str]:
    """Set or delete a key; returns OmegaConf's reason if it refuses."""
    parent, _, leaf = item.key_or_group.rpartition(".")
    try:
        if item.is_delete():
            holder = OmegaConf.select(config, parent)
            with open_dict(holder):
                del holder[leaf]
        else:
            is_new = item.is_add() or item.is_force_add()
            OmegaConf.update(config, item.key_or_group, _values(item)[0], force_add=is_new)
    except (OmegaConfBaseException, ValueError) as error:
        return [f"{item.input_line}: {hydras_reason(error)}"]
    return []


def _is_typed(config: DictConfig, item: Override) -> bool:
    """Whether the type of a value is known without its class: from the default, or of a setting."""
    key = item.key_or_group
    if "." not in key:
        return True
    if item.is_delete() or key.endswith("_target_") or None in _values(item):
        return False
    return not isinstance(select(config, key), DictConfig | ListConfig | None)


def _values(item: Override) -> list[Any]:
    """The value of an override, or the values of a sweep over a list or range.

    No more of them than it takes to see that they are too many.
    """
    if not item.is_sweep_override():
        return [item.value()]
    if not item.is_discrete_sweep():
        return []
    return list(itertools.islice(item.sweep_iterator(), MOST_VALUES + 1))


def _first_of(item: Override) -> str:
    """An override as a single run would have it: with the first value of a sweep."""
    if not item.is_sweep_override():
        return str(item.input_line)
    return f"{item.get_key_element()}={next(item.sweep_string_iterator())}"
