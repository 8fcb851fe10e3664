"""The files of a run directory, checked as if a stranger had written them.

Every fault is a ValueError with the reason alone; who asked knows the file.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from newllm.data.reading import cleaned, parse_json, read_text
from newllm.data.source import NAME
from newllm.runs.identity import HASHED

LARGEST_RESULT = 1 << 24  # bytes; a result with positions of long sequences has some 100,000
LARGEST_CONFIG = 1 << 18  # a configuration has some 3,000
DEEPEST = 32  # nodes of a configuration inside of each other
STATUSES = ("running", "interrupted", "done", "diverged", "failed", "broken")


class Kind(NamedTuple):
    """What a value of a result must be, in words and as a question."""

    words: str
    fits: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _list_of(kind: Kind) -> Kind:
    def fits(value: Any) -> bool:
        return isinstance(value, list) and all(map(kind.fits, value))

    return Kind(f"a list, each {kind.words}", fits)


def _mapping_to(kind: Kind) -> Kind:
    def fits(value: Any) -> bool:
        names_fit = isinstance(value, dict) and all(map(NAME.fullmatch, value))
        return names_fit and all(map(kind.fits, value.values()))

    return Kind(f"a mapping of names, each value {kind.words}", fits)


def _or_null(kind: Kind) -> Kind:
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.fits(value))


def _is_spike(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_is_number(value.get(key)) for key in ("onset", "peak", "ratio"))
        and "recovery" in value
        and all(found is None or _is_number(found) for found in value.values())
    )


TEXT = Kind("text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
WHOLE = Kind("a whole number", _is_whole)
NUMBER = Kind("a number", _is_number)
NUMBERS = _list_of(_or_null(NUMBER))
SPIKES = _mapping_to(_list_of(Kind("a spike with onset, peak, ratio and recovery", _is_spike)))

# What the fields of a result are, as far as somebody reads them.
FIELDS: dict[str, Kind] = {
    "status": Kind(f"one of {', '.join(STATUSES)}", lambda value: value in STATUSES),
    **dict.fromkeys(("experiment", "study", "variant", "name", "error"), _or_null(TEXT)),
    **dict.fromkeys(("git_revision", "data_sha256"), _or_null(TEXT)),
    **dict.fromkeys(("corpus", "config_hash", "variant_hash"), TEXT),
    **dict.fromkeys(("seed", "parameters", "state_bytes", "threads"), WHOLE),
    **dict.fromkeys(("steps", "epochs", "best_step"), _or_null(WHOLE)),
    # A best within an epoch is at a fraction of it.
    **dict.fromkeys(("best_val_loss", "best_val_loss_batch_mean", "best_epoch"), _or_null(NUMBER)),
    **dict.fromkeys(("val_accuracy", "gap_closed", "test_loss", "val_kl"), _or_null(NUMBER)),
    **dict.fromkeys(("oracle_loss", "test_oracle_loss", "entropy_floor"), _or_null(NUMBER)),
    "seconds": _or_null(NUMBER),
    **dict.fromkeys(("sees_the_future", "has_tokenizer"), FLAG),
    "overrides": _list_of(TEXT),
    "sizes": _mapping_to(Kind("a whole number or a flag", lambda value: isinstance(value, int))),
    "references": _mapping_to(NUMBER),
    "references_by_position": _mapping_to(NUMBERS),
    **dict.fromkeys(("val_loss_by_position", "val_kl_by_position"), _or_null(NUMBERS)),
    "spikes": _or_null(SPIKES),
    "evaluation": _or_null(_mapping_to(Kind("metrics", lambda value: isinstance(value, dict)))),
}
# What a run says of itself as soon as it says its number of parameters, and when it is done.
KNOWN_FIELDS = ("seed", "corpus", "references", "threads", "name")
DONE_FIELDS = ("best_val_loss", "best_epoch")


def read_result(file: Path) -> dict[str, Any]:
    """`result.json`, its fields of the types that readers of it count on."""
    return check_result(parse_json(read_text(file, LARGEST_RESULT)))


def check_result(result: Any) -> dict[str, Any]:
    """The same of what was read already; its strings become printable."""
    result = cleaned(result)
    if not isinstance(result, dict) or "status" not in result:
        raise ValueError("it has no status")
    for name, value in result.items():
        if name in FIELDS and not FIELDS[name].fits(value):
            raise ValueError(f"{name}={value!r} must be {FIELDS[name].words}")
    return result


def check_complete(result: dict[str, Any]) -> None:
    """That a result holds all that a comparison of runs reads."""
    needed = [*KNOWN_FIELDS] if "parameters" in result else []
    needed += ["parameters", *KNOWN_FIELDS, *DONE_FIELDS] if result["status"] == "done" else []
    for name in needed:
        if result.get(name) is None:
            raise ValueError(f"it lacks {name}")


def read_config(file: Path) -> DictConfig:
    """`config.yaml`, in which nothing is left to be resolved.

    It is written resolved, plain and without anchors. So any interpolation, alias or tag in it is
    somebody's doing, and could stand for something else than what was checked.
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
    """Look at the events of YAML, before anything is made of them."""
    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError(
                "it contains an anchor or an alias, which the configuration of a run never has"
            )
        if getattr(event, "tag", None):
            raise ValueError(
                f"it contains a tag, {event.tag}, which the configuration of a run never has"
            )
        if "${" in getattr(event, "value", ""):
            raise ValueError(
                "it contains an interpolation, ${...}, which the configuration of a run never has"
            )
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")


def read_weights(file: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by name, each really as large as it says.

    They lie in the file until they are copied.
    """
    _check_archive(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises a dozen kinds, and adds advice that is dangerous here
        raise ValueError("it is damaged") from error
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise ValueError("it contains no model")
    for name, weight in weights.items():
        if not _is_plain(weight):
            raise ValueError(f"{name} is not a plain tensor")
    return weights


def _check_archive(file: Path) -> None:
    """That a checkpoint is an archive as torch writes it, no larger when it is read."""
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a regular file")
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise ValueError(error.strerror or "cannot be read") from error
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError("it is damaged") from error
    is_packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if is_packed or sum(entry.file_size for entry in entries) > found.st_size:
        raise ValueError("it is damaged")


def _is_plain(weight: Any) -> bool:
    """A dense tensor of numbers whose storage holds all of its elements."""
    return (
        type(weight) in (Tensor, torch.nn.Parameter)
        and weight.layout is torch.strided
        and weight.device.type == "cpu"
        and not (weight.is_quantized or weight.is_nested or weight.is_complex())
        and weight.numel() * weight.element_size() <= weight.untyped_storage().nbytes()
    )


def misfit(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str | None:
    """How a checkpoint does not fit a model, in words; None if it does."""
    for name in (*wanted, *weights):
        if name not in weights:
            return f"the checkpoint has no {name}"
        if name not in wanted:
            return f"the checkpoint contains {name}, the model does not"
        if wanted[name].shape != weights[name].shape:
            shapes = [*weights[name].shape], [*wanted[name].shape]
            return f"{name} has the shape {shapes[0]} in the checkpoint, {shapes[1]} in the model"
    return None
