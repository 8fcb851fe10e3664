"""The file of a study, `conf/sweep/<study>.yaml`: its variants, and what its sweep does with them.

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

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.composing import conf_directory
from newllm.config.trials import draw_trials
from newllm.config.values import shown

ONLY = "only"  # of an entry of `then`: patterns of the variants that it is for
MOST_TRIALS = 10_000
# What each part has to be, for messages.
FORMS = {
    "params": "a mapping of keys to values, as in {seed: '1,2'}",
    "variants": "a mapping of names to overrides, as in {deep: ['model.num_layers=12']}",
    "trials": "a number, a seed and a space, as in "
    "{number: 16, seed: 1, space: {optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}}",
    "then": "a mapping of names to values by key, as in {corpora: {data.seed: '1,2'}}",
}


@cache
def sweeper_of(study: str) -> dict[str, Any]:
    """What the file of a study says under `hydra.sweeper`."""
    content = OmegaConf.to_container(OmegaConf.load(conf_directory() / "sweep" / f"{study}.yaml"))
    assert isinstance(content, dict)
    return dict(content["hydra"]["sweeper"])


def variants_of(study: str) -> dict[str, list[str]]:
    """The overrides that make each variant of a study; none for an experiment as it stands."""
    return {name: list(joined(lines)) for name, lines in sweeper_of(study)["variants"].items()}


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


def lines_of(part: str, content: Any) -> list[str]:
    """All overrides that stand in a part of a sweeper's configuration, or are drawn for it.

    Raises:
        ValueError: it has not the form that `FORMS` says.
    """
    try:
        if content is None or content == {}:
            return []
        if part == "trials":
            if not 1 <= content["number"] <= MOST_TRIALS:
                raise ValueError("no such number of trials")
            return draw_trials(**{**content, "number": 1})[0]
        if part == "params":
            return value_lines(content)
        lines = joined if part == "variants" else value_lines
        return [line for entry in content.values() for line in lines(entry)]
    except (TypeError, AttributeError, LookupError, OmegaConfBaseException) as error:
        raise ValueError(str(error)) from error


def matching(names: Sequence[str], patterns: str) -> list[str]:
    """The names that any of the patterns matches, which commas separate."""
    return [name for name in names if any(fnmatchcase(name, p) for p in patterns.split(","))]


def then_of(study: str) -> dict[str, Mapping[str, str]]:
    """What a study chooses for its variants, or their best trials, when they are run again."""
    return {
        name: dict(line.split("=", 1) for line in value_lines(entry))
        for name, entry in sweeper_of(study)["then"].items()
    }
