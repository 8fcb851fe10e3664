"""What a run of a sweep is called, and so where it lies: by what was asked for, not by when."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

from newllm.config.build import conf_directory

LONGEST = 200  # bytes of a name, which may be in any script; a folder's may have 255
FORMER_LONGEST = 100  # where names were cut in older sweeps, whose folders keep them
# They change nothing that a run learns, or have a place of their own in the path.
LEFT_OUT = (
    *("sweep", "seed", "jobs", "threads", "plan", "test", "keep_last", "overwrite"),
    "name",
    *("trusted_packages", "data.directory", "logger", "hydra"),
)


def run_name(overrides: Sequence[str], longest: int = LONGEST) -> str:
    """The experiment and all other choices, sorted; a long list is cut and gets a digest."""
    chosen = dict(_split(line) for line in overrides)
    parts = [
        key if key.startswith("~") else f"{key}={value}"
        for key, value in sorted(chosen.items())
        if key != "experiment" and not _is_left_out(key)
    ]
    first = [chosen.get("name", "null"), chosen.get("experiment", "none")]
    words = [word for word in first if word not in ("null", "none")] + parts
    name = ",".join(words).replace("/", ".") or "default"
    if not name.strip("."):  # a folder of that name would be this one, or the one above
        name = f"name={name}"
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) <= longest:
        return name
    beginning = encoded[: longest - 11].decode(errors="ignore")
    return f"{beginning}-{hashlib.sha256(encoded).hexdigest()[:10]}"


def choices(overrides: Sequence[str]) -> dict[str, str]:
    """What was chosen and changes what a run learns, but for its seed; none is no choice."""
    chosen = dict(_split(line) for line in overrides)
    name = chosen.pop("name", "null")
    kept = {key: value for key, value in chosen.items() if not _is_left_out(key)}
    kept = {key: value for key, value in kept.items() if (key, value) != ("experiment", "none")}
    return kept if name == "null" else {"name": name, **kept}


def chosen_experiment(overrides: Sequence[str]) -> str | None:
    """The experiment among the overrides of a run, if there is one."""
    name = dict(_split(line) for line in overrides).get("experiment", "none")
    return None if name == "none" else name


def without_seed(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides that jobs share which differ in their seed alone."""
    return tuple(line for line in overrides if not line.startswith("seed="))


def _split(line: str) -> tuple[str, str]:
    """A key, which keeps its `~` if the line leaves it out, and its value."""
    key, _, value = line.lstrip("+").partition("=")
    return key.partition("@")[0].replace("/", "."), value


def _is_left_out(key: str) -> bool:
    group, _, name = key.lstrip("~").partition(".")
    if group == "callbacks":
        return not name or name.partition(".")[0] in _watching()
    key = key.lstrip("~")
    return any(key == name or key.startswith(f"{name}.") for name in LEFT_OUT)


@cache
def _watching() -> frozenset[str]:
    """The callbacks that every run has: they only watch; any other may act."""
    return frozenset(map(str, OmegaConf.load(conf_directory() / "callbacks" / "default.yaml")))


def run_folder(overrides: Sequence[str], seed: int, top: str | Path = ".") -> str:
    """The path of a run below the folder of all sweeps, `top`."""
    former = run_name(overrides, FORMER_LONGEST)
    name = former if (Path(top) / former).is_dir() else run_name(overrides)
    return f"{name}/seed={seed}"


def register_resolvers() -> None:
    """Let the configuration say `${run_folder:overrides,seed,top}`."""
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
