"""How an object is checked and built from a node of the configuration."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from newllm.config.trust import Trust

SPECIAL = ("_target_", "_partial_")
TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
FILLED_IN = ("vocabulary_size", "max_length")  # of a model, null until its data is built


class ConfigFault(ValueError):
    """Faults of a configuration, one line each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))


@dataclass(frozen=True)
class Part:
    """A checked target and its arguments, which may be parts themselves."""

    target: Callable[..., Any]
    arguments: dict[str, Any]
    is_partial: bool

    def build(self, **more: Any) -> Any:
        """Call the target, or bind its arguments if it is partial; `more` replaces arguments."""
        own = {key: _built(value) for key, value in self.arguments.items() if key not in more}
        if self.is_partial:
            return functools.partial(self.target, **own, **more)
        return self.target(**own, **more)


def _built(content: Any) -> Any:
    if isinstance(content, Part):
        return content.build()
    if isinstance(content, dict):
        return {key: _built(value) for key, value in content.items()}
    return [_built(value) for value in content] if isinstance(content, list) else content


def instantiate(node: DictConfig, trusted_packages: Sequence[str] = (), **arguments: Any) -> Any:
    """Build the `_target_` of a node, with `arguments` added to those of the node.

    `hydra.utils.instantiate` resolves a node again while it builds, and so could build something
    else than what was checked.

    Raises:
        ConfigFault: a target is not trusted, or does not take an argument.
        ValueError: the constructor refuses its arguments.
    """
    part = checked(node, "", Trust(tuple(trusted_packages)))
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    try:
        return part.build(**arguments)
    except (TypeError, MisconfigurationException) as error:
        raise ValueError(str(error)) from error


def checked(node: DictConfig, name: str, trust: Trust) -> Part:
    """The part that a node describes.

    Raises:
        ConfigFault: with all faults of the node.
    """
    check = _Check(trust)
    part = check.read(_plain(node), name)
    if not check.faults and not isinstance(part, Part):
        check.faults.append(f"{name or 'the node'}: has no _target_")
    if check.faults:
        raise ConfigFault(check.faults)
    return part


def target_faults(node: Any, name: str, trusted_packages: Sequence[str] = ()) -> list[str]:
    """Targets below `node` that are not trusted, and arguments that a target does not take."""
    check = _Check(Trust(tuple(trusted_packages)))
    check.read(_plain(node), name)
    return check.faults


def _plain(node: Any) -> Any:
    """A node as resolved plain containers."""
    try:
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        raise ConfigFault([str(error).partition("\n")[0]]) from error


class _Check:
    """Makes parts of plain containers, and gathers their faults in order."""

    def __init__(self, trust: Trust) -> None:
        self.faults: list[str] = []
        self._trust = trust

    def read(self, content: Any, name: str, is_inner: bool = False) -> Any:
        """The content with its parts; one inside of another part must have all its arguments."""
        if isinstance(content, list):
            items = enumerate(content)
            return [self.read(item, f"{name}[{index}]", is_inner) for index, item in items]
        if content == "???":
            self.faults.append(f"{name}=???: has no value; set it")
        if not isinstance(content, dict):
            return content
        is_part = "_target_" in content
        target = self._target(content, name, is_inner) if is_part else None
        arguments = {
            key: self.read(value, _joined(name, key), is_inner or target is not None)
            for key, value in content.items()
            if not is_part or key not in SPECIAL
        }
        return Part(target, arguments, bool(content.get("_partial_"))) if target else arguments

    def _target(self, content: dict[Any, Any], name: str, is_inner: bool) -> Any:
        place = f"{name}._target_={content['_target_']}".lstrip(".")
        try:
            target = self._trust.target(content["_target_"])
        except ValueError as error:
            self.faults.append(f"{place}: {error}")
            return None
        for key, value in content.items():
            if not isinstance(key, str):
                self.faults.append(f"{_joined(name, key)}: is not a valid argument name")
            elif key == "_partial_" and not isinstance(value, bool):
                self.faults.append(f"{_joined(name, key)}={value}: must be true or false")
            elif key.startswith("_") and key not in SPECIAL:
                self.faults.append(f"{_joined(name, key)}: is not used here; remove it")
        self.faults += _argument_faults(content, name, target, self._trust)
        if is_inner and not content.get("_partial_"):
            self.faults += _missing(content, name, target)
        return target


def _joined(name: str, key: Any) -> str:
    return ".".join(filter(None, (name, str(key))))


def _missing(content: dict[str, Any], name: str, target: Any) -> Iterator[str]:
    lacking = [
        key
        for key, parameter in inspect.signature(target).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and key not in content
    ]
    if lacking:
        remedy = "set it, or add _partial_: true if it is passed later"
        yield f"{name}: {_taker(content)} lacks {', '.join(lacking)}; {remedy}"


def _argument_faults(
    content: dict[str, Any], name: str, target: Any, trust: Trust
) -> Iterator[str]:
    try:
        hints = _arguments(content, target, trust)
    except ValueError:  # a fault of an inner part
        hints = None
    if hints is None:
        return
    for key, value in content.items():
        place = _joined(name, key)
        if key not in hints and not str(key).startswith("_"):
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield f"{place}: {_taker(content)} takes no {key!s}{hint}"
        elif not _fits(value, hints.get(key)) and not (key in FILLED_IN and value is None):
            kinds = " or ".join(TYPE_NAMES[kind] for kind in _kinds(hints[key]))
            yield f"{place}={'null' if value is None else value}: must be {kinds}"


def _arguments(content: dict[str, Any], target: Any, trust: Trust) -> dict[str, Any] | None:
    """The arguments that a target takes and their annotations; None if it takes any.

    A target with `**arguments` passes them on to the `_partial_` nodes of its own, as
    `LanguageModel` passes settings to its layers, or without such nodes to the class that it is
    derived from, as tasks do, and so takes what these take.
    """
    parameters = inspect.signature(target).parameters
    own = _hints(target) if str(target.__module__).startswith("newllm.") else {}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = {
        key: own.get(key)
        for key, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    if not takes_any:
        return known
    factories = [node for node in _inner_nodes(content) if node.get("_partial_") is True]
    if own and not factories and (base := _base(target)):
        more = _arguments(content, base, trust)
        return None if more is None else more | known
    for factory in factories:
        more = _arguments(factory, trust.target(factory["_target_"]), trust)
        if more is None:
            return None
        given = {*factory, "input_dim"}  # the width follows from the layer before
        known = {key: hint for key, hint in more.items() if key not in given} | known
    return known if factories else None


def _base(target: Any) -> type | None:
    """The class of newllm that a class is derived from."""
    bases = target.__bases__[:1] if inspect.isclass(target) else ()
    return next((base for base in bases if str(base.__module__).startswith("newllm.")), None)


def _inner_nodes(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for value in content.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and "_target_" in item:
                yield item


def _taker(content: dict[str, Any]) -> str:
    """The class that takes a node's arguments, or the layers that it passes them to."""
    layers = [value for value in content.values() if isinstance(value, list)]
    nodes = [node for nodes in layers for node in _inner_nodes({"": nodes})] or [content]
    return " and ".join(dict.fromkeys(str(node["_target_"]).rpartition(".")[2] for node in nodes))


def _hints(target: Any) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # some names exist for type checkers only
        return {}


def _kinds(hint: Any) -> list[type]:
    """The plain types of an annotation, without None; empty for any other annotation."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [part for part in parts if part is not NoneType]
    return kinds if all(kind in TYPE_NAMES for kind in kinds) else []


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the annotated type, where that is a plain one."""
    kinds = _kinds(hint)
    if not kinds:
        return True
    if value is None:
        return NoneType in get_args(hint)
    if isinstance(value, bool) or bool in kinds:
        return isinstance(value, bool) == (bool in kinds)
    return isinstance(value, (*kinds, int) if float in kinds else tuple(kinds))
