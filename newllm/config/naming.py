"""The choices of a run, and the name of its folder, which follows from them alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from newllm.config.composing import conf_directory

LONGEST = 200  # bytes of a name, which may be in any script; a folder's may have 255
LARGEST_SEED = 2**32 - 1  # of numpy
STUDY, VARIANT, TRIAL = MARKS = "study", "variant", "trial"
# Choices that do not change what a run learns, and the seed, which is a folder of its own.
OF_A_SWEEP = ("sweep", "only", "jobs", "seeds_at_once", "overwrite", "examination")
# Groups that make a model; other choices are how it is trained.
MODEL_GROUPS = (
    *("model", "gating", "normalization", "recurrence"),
    *("budget.widths", "budget.state_widths"),
)
LEFT_OUT = (
    *(*OF_A_SWEEP, "seed", "threads", "plan", "test", "keep_last", "checkpoint_steps"),
    *("trusted_packages", "data.directory", "logger", "hydra"),
    *("recurrence.compile", "trainer.profiler"),
)


def split(line: str) -> tuple[str, str]:
    """The key and the value of an override, without its prefix (`+`, `++` or `~`)."""
    key, _, value = line.lstrip("+~").partition("=")
    return key.partition("@")[0].replace("/", "."), value


def beside_variant(overrides: Sequence[str]) -> list[str]:
    """The overrides beside the variant of a run, or all of them if it is of no study.

    A sweep writes `study=S`, the lines of a variant, `variant=V`, the values of a trial and
    `trial=T` if it draws any, and then the other overrides.
    """
    ends = [i for i, line in enumerate(overrides) if split(line)[0] in (VARIANT, TRIAL)]
    return list(overrides[ends[-1] + 1 :] if ends else overrides)


def choices(overrides: Sequence[str]) -> dict[str, str]:
    """The values by key that change what a run learns, except its seed, in order.

    A variant counts by its name (`variant`: `STUDY_VARIANT`), not by its lines. A deleted key
    keeps its `~`. `name=null` and `experiment=none` are left out.
    """
    marks = _marks(overrides)
    chosen = {TRIAL: marks[TRIAL]} if TRIAL in marks else {}
    if VARIANT in marks:
        chosen = {
            VARIANT: "_".join(marks[key] for key in (STUDY, VARIANT) if key in marks)
        } | chosen
    for line in beside_variant(overrides):
        key, value = split(line)
        if key not in MARKS:
            chosen[f"~{key}" if line.startswith("~") else key] = value
    return {key: value for key, value in chosen.items() if not _is_left_out(key, value)}


def is_of_a_model(key: str) -> bool:
    """Whether a choice is a part of the model."""
    key = key.lstrip("+~")
    return any(key == name or key.startswith(f"{name}.") for name in MODEL_GROUPS)


def _marks(overrides: Sequence[str]) -> dict[str, str]:
    return {key: value for key, value in map(split, overrides) if key in MARKS and value != "null"}


def _is_left_out(key: str, value: str) -> bool:
    if key in ("name", "experiment"):
        return value in ("null", "none")
    key = key.lstrip("~")
    group, _, rest = key.partition(".")
    if group == "callbacks":
        name = rest.partition(".")[0]
        is_replaced = "_target_" in f"{rest}={value}"  # by another callback, which may act
        return not name or (name in _watching() and not is_replaced)
    return any(key == name or key.startswith(f"{name}.") for name in LEFT_OUT)


@cache
def _watching() -> frozenset[str]:
    """The callbacks of every run, which only watch; others may change how it trains."""
    return frozenset(map(str, OmegaConf.load(conf_directory() / "callbacks" / "default.yaml")))


def run_name(overrides: Sequence[str]) -> str:
    """The name, the variant or experiment, and other choices, sorted, as the name of a folder."""
    chosen = choices(overrides)
    first = [chosen.pop(key) for key in ("name", VARIANT, "experiment") if key in chosen]
    parts = [
        key if key.startswith("~") else f"{key}={value}" for key, value in sorted(chosen.items())
    ]
    return folder_name(",".join([*first, *parts]))


def folder_name(text: str) -> str:
    """Any text as the name of a folder; a long one is cut, with a digest at its end.

    The name is no path, and never begins with `.` or `_`, which would hide the folder.
    """
    name = text.replace("/", ".").replace("\0", "") or "default"
    if name[0] in "._":
        name = f"name={name}"
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) <= LONGEST:
        return name
    beginning = encoded[: LONGEST - 11].decode(errors="ignore")
    return f"{beginning}-{hashlib.sha256(encoded).hexdigest()[:10]}"


def run_folder(overrides: Sequence[str], seed: int) -> str:
    """The path of a run below the folder of all sweeps."""
    return f"{run_name(overrides)}/seed={seed}"


def record_of(overrides: Sequence[str]) -> dict[str, Any]:
    """The choices as a run's result records them.

    They are its `experiment`, `study` and `variant`, or None; and the `overrides` that repeat it
    as a single run, without those that only a sweep reads.
    """
    marks = _marks(overrides)
    experiment = None if VARIANT in marks else choices(overrides).get("experiment")
    lines = [line for line in overrides if split(line)[0] not in OF_A_SWEEP]
    named = {"experiment": experiment, STUDY: marks.get(STUDY), VARIANT: marks.get(VARIANT)}
    return {**named, "overrides": lines}


OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)  # ${run_folder:...}
