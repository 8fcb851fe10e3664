"""The overrides of a command line or of a job, checked one by one and applied to what they choose.

Hydra composes the chosen groups and stops at the first fault. The values of keys, which it would
set afterwards, are set here, so that each can be checked against what stands there, and so that
jobs with the same groups are composed once.
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
from newllm.config.leftovers import without_leftovers
from newllm.config.values import shown, value_faults

MOST_VALUES = 10_000  # of a sweep over one key
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
OWN_SWEEPERS = ("basic", "each")  # which go through lists of values


@dataclass(frozen=True)
class Composition:
    """What some overrides compose.

    Attributes:
        config: with Hydra's own part; without the overrides that have a fault.
        overrides: those without a fault, as a single run would have them.
        faults: a line for each.
        is_settled: whether the composed values told the type of all values that were set. If not,
            only the classes that are built can tell.
    """

    config: DictConfig
    overrides: tuple[str, ...]
    faults: list[str]
    is_settled: bool


class Composer:
    """Composes jobs from the same folders; each choice of groups once."""

    def __init__(self, loader: ConfigLoader, name: str = "config") -> None:
        self._loader, self._name = loader, name
        self._parser = OverridesParser.create(config_loader=loader)  # for what a glob(...) matches
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def parse(self, lines: Sequence[str]) -> tuple[list[Override], list[str]]:
        """The overrides that can be read, and the faults of the others."""
        overrides, faults = [], []
        for line in lines:
            try:
                overrides += self._parser.parse_overrides([line])
            except Exception:  # its functions, such as range(...), raise what they like
                form = "KEY=VALUE, quoting special characters"
                faults.append(f"{line}: not an override; write {form}")
        return overrides, faults

    def compose(self, overrides: Sequence[Override]) -> Composition:
        """Compose a job; of a sweep over several values all are checked and the first is set.

        Raises:
            ConfigFault: Hydra cannot compose the chosen groups.
        """
        found = {id(item): self._own_faults(item, overrides) for item in overrides}
        groups = [item for item in overrides if self._options(item) or is_hydras(item)]
        chosen = [item for item in groups if not found[id(item)]]
        config = copy.deepcopy(self._compose_groups(tuple(map(_first_of, chosen))))
        # What a target takes decides which of its keys can be left out.
        values = [item for item in overrides if item not in groups and not found[id(item)]]
        values.sort(key=lambda item: not item.key_or_group.endswith("._target_"))
        is_settled = True
        for item in values:
            found[id(item)] += value_faults(config, item, _values(item))
            if not found[id(item)] and _values(item):
                is_settled &= _is_typed(config, item)
                found[id(item)] += _set(config, item)
        taken = [item for item in overrides if not found[id(item)] and _values(item)]
        _note(config, taken)
        faults = list(itertools.chain(*found.values()))
        return Composition(config, tuple(map(_first_of, taken)), faults, is_settled)

    def job(self, lines: Sequence[str]) -> DictConfig:
        """The experiment of a job, without Hydra's own part.

        Raises:
            ConfigFault: with a line for each fault.
        """
        overrides, faults = self.parse(lines)
        found = self.compose(overrides)
        if faults := [*faults, *found.faults, *faults_together(found)]:
            raise ConfigFault(faults)
        return without_leftovers(own_part(found.config), found.overrides)

    def check(self, config: DictConfig, item: Override) -> list[str]:
        """The faults of an override of a group or a key, for each of its values."""
        faults = self._own_faults(item, ())
        if not faults and not self._options(item):
            faults += value_faults(config, item, _values(item))
        return faults

    def _own_faults(self, item: Override, overrides: Sequence[Override]) -> list[str]:
        """What can be told without composing anything."""
        if faults := list(self._sweep_faults(item, overrides)):
            return faults
        if item.key_or_group in FOLDERS and None in _values(item):
            return [f"{item.key_or_group}=null: must be a folder"]
        return list(self._option_faults(item)) if self._options(item) else []

    def _compose_groups(self, lines: tuple[str, ...]) -> DictConfig:
        if lines not in self._composed:
            try:
                self._composed[lines] = self._loader.load_configuration(
                    self._name, list(lines), RunMode.RUN
                )
            except Exception as error:  # it raises a dozen kinds for what a user may write
                raise ConfigFault([hydras_reason(error)]) from error
        return self._composed[lines]

    def _options(self, item: Override) -> list[str]:
        """The options of the group that an override chooses from; none if it names no group."""
        return sorted(self._loader.get_group_options(item.key_or_group))

    def _option_faults(self, item: Override) -> Iterator[str]:
        group, options = item.key_or_group, self._options(item)
        if item.is_delete():
            yield f"{item.input_line}: cannot be removed; choose one of its options"
            return
        if not _values(item):
            yield f"{item.input_line}: matches no option; options: {', '.join(options)}"
        for choice in _values(item):
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

    def _sweep_faults(self, item: Override, overrides: Sequence[Override]) -> Iterator[str]:
        """What is wrong with the values of a sweep, or with where they stand."""
        line = item.input_line
        if not item.is_sweep_override():
            return
        if is_hydras(item):
            yield f"{line}: takes one value; sweeps are over keys of the experiment"
        elif not item.is_discrete_sweep():
            sweepers = [it.value() for it in overrides if it.key_or_group == "hydra/sweeper"]
            if not sweepers or sweepers[-1] in OWN_SWEEPERS:
                yield f"{line}: has no values to sweep over; list them, or use range(...)"
        elif len(list(itertools.islice(_sweep_values(item), MOST_VALUES + 1))) > MOST_VALUES:
            yield f"{line}: makes more than {MOST_VALUES} jobs"
        elif not _values(item) and not self._options(item):  # a group says what options there are
            yield f"{line}: has no value"


def faults_together(found: Composition, is_faulty: bool = False) -> Iterator[str]:
    """What shows only in all choices together.

    The classes that would be built are looked at last, and only if they decide (`is_faulty` says
    that there are faults already): to import them takes seconds.
    """
    config, chosen = own_part(found.config), found.overrides
    faults = choice_faults(config, chosen)
    yield from faults
    if not (is_faulty or found.faults or faults) or not found.is_settled:
        yield from class_faults(config, chosen)


def own_part(config: DictConfig) -> DictConfig:
    """The experiment's own part of a configuration: without Hydra's."""
    own = copy.deepcopy(config)
    with open_dict(own):
        del own["hydra"]
    return own


def hydras_reason(error: Exception) -> str:
    """What Hydra has against a configuration."""
    text = re.sub(r"\s+", " ", str(error).partition("\n    full_key:")[0]).strip()
    return re.sub(r"^In '[^']*': ", "", text)


def _note(config: DictConfig, overrides: Sequence[Override]) -> None:
    """Tell Hydra of the values that it did not set itself."""
    own = [item for item in overrides if not is_hydras(item)]
    form = config.hydra.job.config.override_dirname
    named = [_first_of(item) for item in own if item.key_or_group not in form.exclude_keys]
    name = form.item_sep.join(sorted(named)).replace("=", form.kv_sep)
    config.hydra.job.override_dirname = name
    config.hydra.overrides.task = [_first_of(item) for item in own]


def is_hydras(item: Override) -> bool:
    """Whether an override is of Hydra's own part."""
    return re.split("[./]", item.key_or_group)[0] == "hydra"


def _set(config: DictConfig, item: Override) -> list[str]:
    """Set or delete a key as Hydra does; what it has against that, which is rare by now."""
    parent, _, leaf = item.key_or_group.rpartition(".")
    try:
        if item.is_delete():
            holder = OmegaConf.select(config, parent) if parent else config
            with open_dict(holder):
                del holder[leaf]
        else:
            is_new = item.is_add() or item.is_force_add()
            OmegaConf.update(config, item.key_or_group, _values(item)[0], force_add=is_new)
    except (OmegaConfBaseException, ValueError) as error:
        return [f"{item.input_line}: {hydras_reason(error)}"]
    return []


def _is_typed(config: DictConfig, item: Override) -> bool:
    """Whether what stands at a key tells the type of its new value."""
    if item.is_delete() or item.key_or_group.endswith("_target_") or None in _values(item):
        return False
    try:
        before = OmegaConf.select(config, item.key_or_group)
    except OmegaConfBaseException:
        return False
    return before is not None and not isinstance(before, DictConfig | ListConfig)


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


def _first_of(item: Override) -> str:
    """An override as a single run would have it: with the first value of a sweep."""
    if not item.is_sweep_override():
        return str(item.input_line)
    return f"{item.get_key_element()}={next(item.sweep_string_iterator())}"
