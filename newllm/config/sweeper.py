"""Faults of `hydra.sweeper`, from the file of a study or written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.build import ConfigFault
from newllm.config.composing import PLUGIN_MODULE, SWEEPER
from newllm.config.overrides import Composer, hydras_reason
from newllm.config.study_file import are_overrides, joined, value_lines
from newllm.config.trials import draw_trials
from newllm.config.values import shown

MOST_TRIALS = 10_000
# The form of each part.
FORMS = {
    "params": "a mapping of keys to values, as in {seed: '1,2'}",
    "variants": "a mapping of names to overrides, as in {deep: ['model.num_layers=12']}",
    "baselines": "a mapping of names to overrides, as in {lstm: [model=lstm]}",
    "trials": "a number, a seed and a space, as in "
    "{number: 16, seed: 1, space: {optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}}, "
    "or the space of a grid, as in {space: {optimizer.lr: {choices: [1e-3, 2e-3]}}}",
    "then": "a mapping of names to values by key, as in {corpora: {data.seed: '1,2'}}",
}


def sweeper_faults(config: DictConfig, composer: Composer) -> Iterator[str]:
    """One line for each fault.

    Args:
        config: as composed, with Hydra's own part.
        composer: reads overrides.
    """
    study = config.hydra.runtime.choices["sweep"]
    file = "" if study == "none" else f"sweep/{study}.yaml: "
    if "sweep" in config:
        yield f"{file}its first line must be `# @package _global_`"
    elif file and config.hydra.mode != RunMode.MULTIRUN:
        yield f"{file}`mode: MULTIRUN` is missing under `hydra`"
    if any("hydra.sweeper" in line for line in config.hydra.overrides.hydra):
        file = ""  # written by hand
    try:
        sweeper = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigFault([f"{file}hydra.sweeper: {hydras_reason(error)}"]) from error
    assert isinstance(sweeper, dict)
    parts: Any = SWEEPER
    if not str(sweeper.pop("_target_", "")).startswith(PLUGIN_MODULE):
        parts = ("params",)  # another sweeper's parts are its own
    elif unknown := sorted(map(str, sweeper.keys() - SWEEPER.keys())):
        there = ", ".join(SWEEPER)
        yield from (f"{file}hydra.sweeper.{key}: unknown; known keys: {there}" for key in unknown)
    for part in parts:
        content = sweeper.get(part)
        if content is not None and not _has_form(part, content):
            yield f"{file}hydra.sweeper.{part}={shown(content)}: must be {FORMS[part]}"
        elif content:
            for fault in _part_faults(part, content, config, composer):
                yield f"{file}hydra.sweeper.{part}{fault}"


def _has_form(part: str, content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    if part == "then":
        return all(isinstance(values, dict | None) for values in content.values())
    if part == "trials" and content:
        try:
            number = content.get("number")
            least = draw_trials(**{**content, "number": number and 1})
            return 1 <= (len(least) if number is None else number) <= MOST_TRIALS
        except (TypeError, ValueError, AttributeError, LookupError):
            return False
    return True


def _part_faults(
    part: str, content: Mapping[str, Any], config: DictConfig, composer: Composer
) -> Iterator[str]:
    """Faults of the overrides in a part; the jobs of a sweep tell those of their values."""
    if part == "trials":
        return
    entries: dict[str, Any] = {f".{name}": entry for name, entry in content.items()}
    if part == "params":
        entries = {"": content}
    for place, entry in entries.items():
        has_overrides = part in ("variants", "baselines")
        if has_overrides and not are_overrides(entry):
            yield f"{place}: must be a list of overrides, such as [model=lstm]"
            continue
        if has_overrides:
            lines = list(joined(entry))
        else:
            nested = [key for key, value in (entry or {}).items() if isinstance(value, list | dict)]
            for key in nested:
                yield f"{place}.{key}: must be a text, such as '1,2' for two values"
            lines = value_lines({k: v for k, v in (entry or {}).items() if k not in nested})
        overrides, unread = composer.parse(lines)
        yield from (f"{place}: {fault}" for fault in unread)
        for item in overrides if part == "params" else ():
            yield from (f": {fault}" for fault in composer.check(config, item))
