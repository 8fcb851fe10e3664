"""What was chosen for a run, and the name of its folder, which follows from that alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

from omegaconf import OmegaConf

from newllm.config.composing import conf_directory

LONGEST = 200  # bytes of a name, which may be in any script; a folder's may have 255
# Choices that do not change what a run learns, and the seed, which is a folder of its own.
LEFT_OUT = (
    *("sweep", "seed", "jobs", "threads", "plan", "test", "keep_last", "overwrite"),
    "checkpoint_steps",
    *("trusted_packages", "data.directory", "logger", "hydra"),
)


def split(line: str) -> tuple[str, str]:
    """The key and the value of an override, without its prefix (`+`, `++` or `~`)."""
    key, _, value = line.lstrip("+~").partition("=")
    return key.partition("@")[0].replace("/", "."), value


def choices(overrides: Sequence[str]) -> dict[str, str]:
    """The values by key that change what a run learns, except its seed, in their order.

    A deleted key keeps its `~`. `name=null` and `experiment=none` are left out.
    """
    lines = [(line.startswith("~"), *split(line)) for line in overrides]
    chosen = {f"~{key}" if is_gone else key: value for is_gone, key, value in lines}
    return {key: value for key, value in chosen.items() if not _is_left_out(key, value)}


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
    """The name, the experiment and all other choices, sorted, as the name of a folder."""
    chosen = choices(overrides)
    first = [chosen.pop(key) for key in ("name", "experiment") if key in chosen]
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


def chosen_experiment(overrides: Sequence[str]) -> str | None:
    """The experiment among the overrides of a run, if there is one."""
    return choices(overrides).get("experiment")


def without_seed(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides without the seed: equal for jobs that differ in their seed alone."""
    return tuple(line for line in overrides if split(line)[0] != "seed")


def register_resolvers() -> None:
    """Let the configuration say `${run_folder:overrides,seed}`."""
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
