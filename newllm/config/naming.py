"""What a run of a sweep is called, and so where it lies: by what was asked for, not by when."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from omegaconf import OmegaConf

LONGEST = 100  # bytes of a name, which may be in any script; a folder's may have 255
# They change nothing that a run learns, or have a place of their own in the path.
LEFT_OUT = (
    *("sweep", "seed", "jobs", "threads", "plan", "test", "keep_last", "overwrite"),
    "name",
    *("trusted_packages", "data.directory", "logger", "callbacks", "hydra"),
)


def run_name(overrides: Sequence[str]) -> str:
    """The experiment and all other choices, sorted; a long list is cut and gets a digest."""
    chosen = dict(_split(line) for line in overrides)
    parts = [
        f"{key}={value}"
        for key, value in sorted(chosen.items())
        if key != "experiment" and not _is_left_out(key)
    ]
    first = [chosen.get("name", "null"), chosen.get("experiment", "none")]
    words = [word for word in first if word not in ("null", "none")] + parts
    name = ",".join(words).replace("/", ".") or "default"
    if not name.strip("."):  # a folder of that name would be this one, or the one above
        name = f"name={name}"
    encoded = name.encode(errors="surrogateescape")
    if len(encoded) <= LONGEST:
        return name
    beginning = encoded[: LONGEST - 11].decode(errors="ignore")
    return f"{beginning}-{hashlib.sha256(encoded).hexdigest()[:10]}"


def chosen_experiment(overrides: Sequence[str]) -> str | None:
    """The experiment among the overrides of a run, if there is one."""
    name = dict(_split(line) for line in overrides).get("experiment", "none")
    return None if name == "none" else name


def without_seed(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides that jobs share which differ in their seed alone."""
    return tuple(line for line in overrides if not line.startswith("seed="))


def _split(line: str) -> tuple[str, str]:
    key, _, value = line.lstrip("+~").partition("=")
    return key.partition("@")[0].replace("/", "."), value


def _is_left_out(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in LEFT_OUT)


def run_folder(overrides: Sequence[str], seed: int) -> str:
    """The path of a run below the folder of all sweeps."""
    return f"{run_name(overrides)}/seed={seed}"


def register_resolvers() -> None:
    """Let the configuration say `${run_folder:overrides,seed}`."""
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
