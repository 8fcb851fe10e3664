"""The identity of a run: the hash of what decides its weights, and the revision of the code."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf

from newllm.config.budget import decided_sizes, named_sizes
from newllm.data.reading import PATHS, files_below, is_there

# Parts of the configuration that decide the weights; paths, logging and threads do not.
HASHED = ("model", "data", "optimizer", "schedule", "recipe", "countermeasures", "trainer", "seed")

# Callbacks of these modules only watch.
WATCHING = tuple(
    f"newllm.training.{name}." for name in ("progress", "step_validation", "throughput", "watching")
)


def config_hash(config: DictConfig) -> str:
    """A digest of everything that decides the weights and the figures of a run."""
    return _digest(hashed(config))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def variant_hash(config: DictConfig) -> str:
    """A digest that runs share if they differ in their seed alone."""
    kept = hashed(config)
    del kept["seed"]
    kept["data"].pop("order_seed", None)
    if "seed" in config.data and OmegaConf.is_interpolation(config.data, "seed"):
        del kept["data"]["seed"]  # of a task, the same seed
    return _digest(kept)


def hashed(config: DictConfig) -> dict[str, Any]:
    """The parts of a configuration that decide the weights."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    kept: dict[str, Any] = {name: content.get(name) for name in HASHED}
    acting = {
        name: node
        for name, node in (content.get("callbacks") or {}).items()
        if node and "_target_" in node and not str(node["_target_"]).startswith(WATCHING)
    }
    if acting:
        kept["callbacks"] = acting
    left_out = {"data": ["directory"], "trainer": ["profiler"]}
    if isinstance(recurrence := (kept["model"] or {}).get("recurrence"), dict):
        recurrence.pop("compile", None)  # how it computes, not what
    if decides_vocabulary(kept["recipe"] or {}):
        left_out["model"] = ["vocabulary_size"]  # follows from the data
    if (kept["data"] or {}).get("feed") == "rows":
        left_out["data"] += ["feed", "tbptt_steps", "start_state"]  # older runs have none
    if decides_length(kept["data"] or {}):
        left_out["model"] = [*left_out.get("model", ()), "max_length"]  # as well
    budget = content.get("budget") or {}  # older runs have none
    if sizes := decided_sizes(budget):
        kept["budget"] = named_sizes(budget)
        left_out["model"] = [*left_out.get("model", ()), *sizes]  # follow from it
    if (max_tokens := content.get("max_tokens")) is not None:
        kept["max_tokens"] = max_tokens
        # Replaced by it.
        left_out["trainer"] = [*left_out["trainer"], "max_steps", "max_epochs"]
    if not content.get("test", True):
        kept["test"] = False  # such a run lacks the figure
    for part, names in left_out.items():
        kept[part] = {k: value for k, value in (kept[part] or {}).items() if k not in names}
    for key in PATHS:
        text = kept["data"].get(key)
        if text and is_there(path_text := to_absolute_path(str(text))):
            path = Path(path_text)
            files = files_below(path)  # their content counts, not their path
            statuses = [(file, file.stat()) for file in files]
            stamps = ((file, found.st_size, found.st_mtime_ns) for file, found in statuses)
            kept["data"][key] = _digest_of_files(path, tuple(stamps))
    return kept


def decides_vocabulary(recipe: Mapping[str, Any]) -> bool:
    """Whether the vocabulary of the data decides how many classes a model has."""
    return recipe.get("output_classes") is None


def decides_length(data: Mapping[str, Any]) -> bool:
    """Whether the longest row of the data decides how many positions a model is made for."""
    return data.get("max_length") is None


@lru_cache(maxsize=64)  # a sweep asks for every job
def _digest_of_files(path: Path, stamps: tuple[tuple[Path, int, int], ...]) -> str:
    """SHA-256 of a file, or of the files in a folder; their sizes and times tell a change."""
    digests = []
    for file, _, _ in stamps:
        with file.open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    names = [str(file.relative_to(path)) for file, _, _ in stamps]
    return digests[0] if path.is_file() else _digest([*zip(names, digests, strict=True)])


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """A line for each value that differs between two configurations."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new:
            yield f"{name} was {old}, is {new}"
        return
    for key in sorted({*old, *new}, key=str):
        yield from differences(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))


def git_revision() -> str | None:
    """The revision of the code, with `-dirty` if files differ. None outside a checkout."""
    own = Path(__file__)
    # An installed package may lie inside a checkout of something else.
    if _git("-C", str(own.parent), "ls-files", own.name) is None:
        return None
    describe = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return _git("-C", str(own.parent), *describe)


def _git(*arguments: str) -> str | None:
    """The output of git. None without git, if it fails, or if there is none."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
