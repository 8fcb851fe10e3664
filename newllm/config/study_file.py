"""The file of a study, `conf/sweep/<study>.yaml`: its variants, trials and second stage.

    # @package _global_
    only: "phase*"                        # what to run where the command line has no `only`
    hydra:
      mode: MULTIRUN
      sweeper:
        params: {seed: "1,2,3"}           # of all variants, as on the command line
        variants:
          phase1_baseline:                # nothing: the experiment of that name
          deep: [model.num_layers=12]     # overrides; lists in the list are joined to it
        baselines: {lstm: [model=lstm]}   # each variant again, with these instead of `model`
        trials: {number: 16, seed: 1, space: {optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}}
        # Or a grid:  trials: {space: {optimizer.lr: {choices: [1e-3, 2e-3]}}}
        then:                             # each variant, or its best trial, again
          corpora: {only: "deep*", data.seed: "1,2,3", seed: "1"}

An override of a variant with several values, or of its seed, is chosen beside the variant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from newllm.config.composing import conf_directory
from newllm.config.naming import choices
from newllm.config.values import shown

ONLY = "only"  # of an entry of `then`: patterns of the variants that it is for


@cache
def sweeper_of(study: str) -> dict[str, Any]:
    """The node `hydra.sweeper` of the file of a study."""
    content = OmegaConf.to_container(OmegaConf.load(conf_directory() / "sweep" / f"{study}.yaml"))
    assert isinstance(content, dict)
    return dict(content["hydra"]["sweeper"])


def variants_of(study: str) -> dict[str, list[str]]:
    """The overrides that make each variant of a study; none for an experiment as it stands."""
    variants = sweeper_of(study).get("variants") or {}
    return {name: list(joined(lines)) for name, lines in variants.items()}


def baselines_of(study: str) -> dict[str, list[str]]:
    """The overrides of each baseline of a study."""
    baselines = sweeper_of(study).get("baselines") or {}
    return {name: list(joined(lines)) for name, lines in baselines.items()}


def joined(lines: str | Sequence[Any] | None) -> Iterator[str]:
    """The overrides of a variant, from lists in lists."""
    for line in [lines] if isinstance(lines, str) else lines or ():
        if isinstance(line, str):
            yield line
        else:
            yield from joined(line)


def parted(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """What makes a variant, and what is chosen beside it: several values, or its seed."""
    parsed = zip(lines, OverridesParser.create().parse_overrides(list(lines)), strict=True)
    beside = [line for line, item in parsed if item.is_sweep_override() or line.startswith("seed=")]
    return [line for line in lines if line not in beside], beside


def value_lines(values: Mapping[str, Any]) -> list[str]:
    """The overrides that a mapping of keys to values stands for."""
    return [f"{key!s}={shown(value)}" for key, value in values.items() if key != ONLY]


def are_overrides(lines: Any) -> bool:
    """Whether these are texts in lists in lists; None stands for an empty list."""
    if isinstance(lines, list):
        return all(isinstance(line, str | list) and are_overrides(line) for line in lines)
    return isinstance(lines, str | None)


def matching(names: Sequence[str], patterns: str) -> list[str]:
    """The names that any of the patterns matches, which commas separate."""
    return [name for name in names if any(fnmatchcase(name, p) for p in patterns.split(","))]


def then_of(study: str) -> dict[str, Mapping[str, str]]:
    """The values of each second stage of a study."""
    return {
        name: dict(line.split("=", 1) for line in value_lines(entry))
        for name, entry in (sweeper_of(study).get("then") or {}).items()
    }


def stage_of(study: str, chosen: Mapping[str, str]) -> str | None:
    """The second stage of a study that makes these choices beside a trial, if there is one."""
    for name, values in then_of(study).items():
        wanted = choices([f"{key}={value}" for key, value in values.items()])
        if chosen.keys() == wanted.keys() and all(
            chosen[key] == value or "," in value for key, value in wanted.items()
        ):
            return name
    return None
