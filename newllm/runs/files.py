"""The files of a run directory, checked as if a stranger had written them.

Every fault in reading is a ValueError that gives the reason alone; the caller adds the name of the
file.
"""

from __future__ import annotations

import inspect
import stat
import zipfile
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from newllm.data.reading import cleaned, one_line, parse_json, read_text
from newllm.data.source import NAME
from newllm.runs.identity import HASHED
from newllm.runs.writing import written_whole

LARGEST_RESULT = 1 << 24  # bytes; with losses at each position of long sequences some 100,000
LARGEST_CONFIG = 1 << 18  # bytes; usually some 3,000
DEEPEST = 32  # levels of nesting in a configuration

# The types of the fields of a result that are read again. `float` includes whole numbers.
FIELDS: dict[str, Any] = {
    "status": Literal["running", "interrupted", "done", "diverged", "failed", "broken"],
    **dict.fromkeys(("experiment", "study", "variant", "name", "error"), str | None),
    **dict.fromkeys(("git_revision", "data_sha256"), str | None),
    **dict.fromkeys(("corpus", "config_hash", "variant_hash"), str),
    **dict.fromkeys(("seed", "parameters", "state_bytes", "threads"), int),
    **dict.fromkeys(("steps", "epochs", "best_step"), int | None),
    **dict.fromkeys(("best_val_loss", "best_val_loss_batch_mean", "best_epoch"), float | None),
    **dict.fromkeys(("val_accuracy", "gap_closed", "test_loss", "val_kl"), float | None),
    "test_bits_per_byte": float | None,
    "test_references_bits_per_byte": dict[str, float] | None,
    **dict.fromkeys(("oracle_loss", "test_oracle_loss", "entropy_floor"), float | None),
    **dict.fromkeys(("seconds", "state_bits"), float | None),
    **dict.fromkeys(("sees_the_future", "has_tokenizer"), bool),
    "overrides": list[str],
    "sizes": dict[str, int | bool],
    "references": dict[str, float],
    "references_by_position": dict[str, list[float | None]],
    **dict.fromkeys(
        ("val_loss_by_position", "val_kl_by_position", "places_by_position"),
        list[float | None] | None,
    ),
    "spikes": dict[str, list[dict[str, float | None]]] | None,
    "evaluation": dict[str, dict] | None,
}
SPIKE_FIELDS = ("onset", "peak", "ratio")  # and `recovery`, which may be null
KNOWN_FIELDS = ("seed", "corpus", "references", "threads", "name")  # of a run that has started
DONE_FIELDS = ("parameters", *KNOWN_FIELDS, "best_val_loss", "best_epoch")


def read_result(file: Path) -> dict[str, Any]:
    """`result.json`, with fields of the types in `FIELDS`."""
    return check_result(parse_json(read_text(file, LARGEST_RESULT)))


def check_result(result: Any) -> dict[str, Any]:
    """The same for a result that was parsed already. Its strings become printable."""
    result = cleaned(result)
    if not isinstance(result, dict) or "status" not in result:
        raise ValueError("it has no status")
    for name, kind in FIELDS.items():
        if name in result and not is_of_type(result[name], kind):
            raise ValueError(f"{name}={result[name]!r} must be {inspect.formatannotation(kind)}")
    for spikes in (result.get("spikes") or {}).values():
        for spike in spikes:
            if "recovery" not in spike or any(spike.get(name) is None for name in SPIKE_FIELDS):
                raise ValueError(f"a spike needs {', '.join(SPIKE_FIELDS)} and recovery")
    return result


def check_complete(result: dict[str, Any]) -> None:
    """Check that a result holds everything that a comparison of runs reads."""
    needed = KNOWN_FIELDS if "parameters" in result else ()
    for name in DONE_FIELDS if result["status"] == "done" else needed:
        if result.get(name) is None:
            raise ValueError(f"it lacks {name}")


def is_of_type(value: Any, kind: Any) -> bool:
    """Whether a value that was read from a file is of an annotated type."""
    if isinstance(kind, UnionType):
        return any(is_of_type(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(
            is_of_type(item, get_args(kind)[0]) for item in value
        )
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(
            NAME.fullmatch(name) and is_of_type(item, get_args(kind)[1])
            for name, item in value.items()
        )
    if kind is float:
        return isinstance(value, float) or is_of_type(value, int)
    if kind is int:  # at most 64 bits, and no flag
        return type(value) is int and abs(value) < 1 << 63
    return isinstance(value, kind)


def read_config(file: Path) -> DictConfig:
    """`config.yaml`, which is written resolved, without anchors, aliases and tags.

    Any of these was added by somebody and could hide from later checks what it stands for.
    """
    text = read_text(file, LARGEST_CONFIG)
    try:
        _check_yaml(text)
        config = OmegaConf.create(text)
        content = OmegaConf.to_container(config)
    except Exception as error:  # YAML, OmegaConf and Python's numbers have a dozen kinds
        raise ValueError(str(error)) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError("it has no model")
    for name in (*HASHED, "budget", "callbacks"):
        if name != "seed" and not isinstance(content.get(name), dict | None):
            raise ValueError(f"{name} must be a mapping")
    assert isinstance(config, DictConfig)
    return config


def _check_yaml(text: str) -> None:
    """Check the events of the parser, before any object is built from them."""
    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("it holds an anchor or an alias")
        if getattr(event, "tag", None):
            raise ValueError(f"it holds a tag, {event.tag}")
        if "${" in getattr(event, "value", ""):
            raise ValueError("it holds an interpolation, ${...}")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")


def read_saved(file: Path, mmap: bool = False) -> Any:
    """Tensors, numbers and containers that `torch.save` wrote; `mmap` maps them into memory.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    _check_archive(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises a dozen kinds, and adds advice that is dangerous here
        raise ValueError("it is damaged") from error


def read_weights(file: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by name, mapped into memory."""
    content = read_saved(file, mmap=True)
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise ValueError("it contains no model")
    for name, weight in weights.items():
        if not _is_plain(weight):
            raise ValueError(f"{name} is not a plain tensor")
    return weights


def _check_archive(file: Path) -> None:
    """Check that a file is an archive as torch writes it, no larger when it is unpacked."""
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a regular file")
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise ValueError(error.strerror or "cannot be read") from error
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError("it is damaged, or was not written by torch") from error
    is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if is_packed or sum(entry.file_size for entry in entries) > found.st_size:
        raise ValueError("it is damaged")


def _is_plain(weight: Any) -> bool:
    """Whether it is a dense tensor of real numbers whose storage holds all of its elements."""
    return (
        type(weight) in (Tensor, torch.nn.Parameter)
        and weight.layout is torch.strided
        and weight.device.type == "cpu"
        and not (weight.is_quantized or weight.is_nested or weight.is_complex())
        and weight.numel() * weight.element_size() <= weight.untyped_storage().nbytes()
    )


def write_saved(path: Path, content: object) -> None:
    """Write what `read_saved` reads, whole or not at all.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        # Opened here, since torch raises its own errors for a folder that is missing.
        with written_whole(path) as partial, partial.open("xb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ValueError(f"{path}: cannot be written; {reason}") from error
