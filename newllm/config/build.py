"""Where the configuration lies, and how an object is built from a node of it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import hydra.utils
from hydra.errors import InstantiationException
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, ListConfig, OmegaConf

# Where a target may come from. Whole packages would be too much: torch holds classes that start
# processes, and a run directory from a stranger must not execute anything.
TRUSTED_MODULES = (
    "newllm.models.budget",
    "newllm.models.context",
    "newllm.models.fused",
    "newllm.models.gating",
    "newllm.models.initialization",
    "newllm.models.mingru",
    "newllm.models.recurrent",
    "newllm.models.recurrence",
    "newllm.models.transformer",
    "newllm.data.module",
    "newllm.callbacks",
    "newllm.module",
    "torch.nn",
    "torch.optim",
    "torchmetrics",
    "lightning.pytorch.trainer",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
)
TRUSTED_PACKAGES = ("newllm", "torch", "torchmetrics", "lightning")
TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


class ConfigFault(ValueError):
    """Faults of a configuration, one line each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))


def conf_directory() -> Path:
    """The folder of configuration files: beside the code in a wheel, above it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "conf", package.parent / "conf")
    return next(path for path in candidates if (path / "config.yaml").is_file())


def instantiate(node: DictConfig, trusted_packages: Sequence[str] = (), **arguments: Any) -> Any:
    """Build what a node's `_target_` names, `arguments` added to those of the node.

    Raises:
        ConfigFault: a target outside the trusted packages, or an argument that it does not take.
        ValueError: the constructor refuses its arguments.
    """
    if faults := list(target_faults(node, "", trusted_packages)):
        raise ConfigFault(faults)
    try:
        return hydra.utils.instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | TypeError | MisconfigurationException):
            raise ValueError(str(error.__cause__)) from error
        raise


def target_faults(node: Any, name: str, trusted_packages: Sequence[str] = ()) -> Iterator[str]:
    """Targets below `node` that are not trusted, and arguments that a target does not take."""
    if isinstance(node, ListConfig):
        for index, item in enumerate(node):
            yield from target_faults(item, f"{name}[{index}]", trusted_packages)
    if not isinstance(node, DictConfig):
        return
    if "_target_" in node:
        yield from _call_faults(node, name, trusted_packages)
    for key in node:
        if not OmegaConf.is_missing(node, key):
            place = ".".join(filter(None, (name, str(key))))
            yield from target_faults(node[key], place, trusted_packages)


def _call_faults(node: DictConfig, name: str, trusted_packages: Sequence[str]) -> Iterator[str]:
    path = str(node["_target_"])
    place = f"{name}._target_={path}".lstrip(".")
    # The name is checked before it is imported: an import runs code.
    packages = (*TRUSTED_PACKAGES, *trusted_packages)
    if path.partition(".")[0] not in packages:
        yield f"{place}: not from {', '.join(packages)}; if it is safe: trusted_packages=[PACKAGE]"
        return
    try:
        target = hydra.utils.get_object(path)
    except (ImportError, ValueError):
        yield f"{place}: no such class or function"
        return
    # A trusted module may hold something foreign: torch.os.system is os.system.
    home = f"{getattr(target, '__module__', None)}."
    trusted = (*TRUSTED_MODULES, *trusted_packages)
    if "_args_" in node or not home.startswith(tuple(f"{module}." for module in trusted)):
        yield f"{place}: not among what may be built ({', '.join(trusted)})"
        return
    yield from _argument_faults(node, name, target)


def _argument_faults(node: DictConfig, name: str, target: Any) -> Iterator[str]:
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [key for key in parameters if key not in ("self", "args")]
    own = str(target.__module__).startswith("newllm.")
    hints = _hints(target) if own else {}
    for key in node:
        place = ".".join(filter(None, (name, str(key))))
        if key not in known and not str(key).startswith("_"):
            taker = str(node["_target_"]).rpartition(".")[2]
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield f"{place}: {taker} takes no {key!s}{hint}"
        elif key in hints and not _fits(node[key], hints[key]):
            kinds = " or ".join(TYPE_NAMES[kind] for kind in _kinds(hints[key]))
            yield f"{place}={node[key]}: must be {kinds}"


def takes_null(node: DictConfig, key: str) -> bool:
    """Whether what a node builds says of an argument that it may be None."""
    if list(_call_faults(node, "", ())):
        return False
    return NoneType in get_args(_hints(hydra.utils.get_object(str(node["_target_"]))).get(key))


def _hints(target: Any) -> dict[str, Any]:
    """What the arguments of a class or function are annotated as, where that can be told."""
    constructor = target.__init__ if inspect.isclass(target) else target
    try:
        return get_type_hints(constructor)
    except (NameError, TypeError):  # some of others' names exist for type checkers only
        return {}


def _kinds(hint: Any) -> list[type]:
    """The types of a union of plain ones, without None; nothing for any other annotation."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [part for part in parts if part is not NoneType]
    return kinds if all(kind in TYPE_NAMES for kind in kinds) else []


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has a plain type that was annotated; null is left to the constructor."""
    kinds = _kinds(hint)
    if not kinds or value is None:
        return True
    if isinstance(value, bool) or bool in kinds:
        return isinstance(value, bool) == (bool in kinds)
    return isinstance(value, (*kinds, int) if float in kinds else tuple(kinds))
