"""The file of a study, `conf/sweep/<study>.yaml`: its variants, and what its sweep does with them.

    # @package _global_
    only: "phase*"                        # what to run where the command line has no `only`
    hydra:
      mode: MULTIRUN
      sweeper:
        params: {seed: "1,2,3"}           # of all variants, as on the command line
        variants:
          phase1_baseline:                # nothing: the experiment of that name
          deep: [model.num_layers=12]     # overrides; lists in the list are joined to it
        trials: {number: 16, seed: 1, space: {optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}}
        then:                             # each variant, or its best trial, again
          corpora: {only: "deep*", data.seed: "1,2,3", seed: "1"}

An override of a variant that has several values, or is its seed, is chosen beside the variant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from newllm.config.composing import PLUGIN_MODULE, SWEEPER, conf_directory
from newllm.config.overrides import Composer

ONLY = "only"  # of an entry of `then`: patterns of the variants that it is for


def study_faults(config: DictConfig, composer: Composer) -> Iterator[str]:
    """A line for each fault of the file of the study that a command line chose, if it chose one.

    Args:
        config: as composed, with Hydra's own part.
        composer: reads the overrides of variants.
    """
    name = config.hydra.runtime.choices["sweep"]
    if name == "none":
        return
    file = f"sweep/{name}.yaml"
    if "sweep" in config:
        yield f"{file}: its first line must be `# @package _global_`"
    elif config.hydra.mode != RunMode.MULTIRUN:
        yield f"{file}: lacks `mode: MULTIRUN` under `hydra`"
    sweeper = OmegaConf.to_container(config.hydra.sweeper)
    assert isinstance(sweeper, dict)
    if not str(sweeper.pop("_target_", "")).startswith(PLUGIN_MODULE):
        return  # not ours
    for key in sorted(map(str, sweeper.keys() - SWEEPER.keys())):
        yield f"{file}: hydra.sweeper.{key}: unknown; there are {', '.join(SWEEPER)}"
    for key in SWEEPER:
        if not isinstance(sweeper[key], dict | None):
            yield f"{file}: hydra.sweeper.{key}: must be a mapping"
            sweeper[key] = None
    for key, values in (sweeper["params"] or {}).items():
        if isinstance(values, list | dict):
            yield f"{file}: params.{key}: must be a text, such as '1,2' for two values"
    for variant, lines in (sweeper["variants"] or {}).items():
        if not _are_overrides(lines):
            yield f"{file}: variants.{variant}: must be a list of overrides, such as [model=lstm]"
        else:
            _, faults = composer.parse(list(joined(lines)))
            yield from (f"{file}: variants.{variant}: {fault}" for fault in faults)


def _are_overrides(lines: Any) -> bool:
    """Whether these are texts in lists in lists; None stands for an empty list."""
    if isinstance(lines, list):
        return all(isinstance(line, str | list) and _are_overrides(line) for line in lines)
    return isinstance(lines, str | None)


@cache
def sweeper_of(study: str) -> dict[str, Any]:
    """What the file of a study says under `hydra.sweeper`."""
    content = OmegaConf.to_container(OmegaConf.load(conf_directory() / "sweep" / f"{study}.yaml"))
    assert isinstance(content, dict)
    return dict(content["hydra"]["sweeper"])


def variants_of(study: str) -> dict[str, list[str]]:
    """The overrides that make each variant of a study; none for an experiment as it stands."""
    variants = sweeper_of(study).get("variants") or {}
    return {name: list(joined(lines)) for name, lines in variants.items()}


def joined(lines: str | Sequence[Any] | None) -> Iterator[str]:
    """The overrides of a variant, from lists in lists."""
    for line in [lines] if isinstance(lines, str) else lines or ():
        if isinstance(line, str):
            yield line
        else:
            yield from joined(line)


def matching(names: Sequence[str], patterns: str) -> list[str]:
    """The names that any of the patterns matches, which commas separate."""
    return [name for name in names if any(fnmatchcase(name, p) for p in patterns.split(","))]


def then_of(study: str) -> dict[str, Mapping[str, str]]:
    """What a study chooses for its variants, or their best trials, when they are run again."""
    return {
        name: {key: str(value) for key, value in entry.items() if key != ONLY}
        for name, entry in (sweeper_of(study).get("then") or {}).items()
    }
