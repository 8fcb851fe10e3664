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


class ConfigFault(ValueError):
    """Faults of a configuration, one line each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))


@dataclass(frozen=True)
class Part:
    """A target that was checked, and its arguments; those that are to be built are parts again."""

    target: Callable[..., Any]
    arguments: dict[str, Any]
    is_partial: bool

    def build(self, **more: Any) -> Any:
        """Call the target, or hand it on with its arguments; `more` stands in for those."""
        own = {key: _built(value) for key, value in self.arguments.items() if key not in more}
        if self.is_partial:
            return functools.partial(self.target, **own, **more)
        return self.target(**own, **more)


def _built(content: Any) -> Any:
    if isinstance(content, Part):
        return content.build()
    if isinstance(content, dict):
        return {key: _built(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_built(value) for value in content]
    return content


def instantiate(node: DictConfig, trusted_packages: Sequence[str] = (), **arguments: Any) -> Any:
    """Build what a node's `_target_` names, `arguments` added to those of the node.

    As `hydra.utils.instantiate`, which resolves a node again while it builds, so that something
    else could be built than what was checked.

    Raises:
        ConfigFault: a target that is not trusted, or an argument that it does not take.
        ValueError: the constructor refuses its arguments.
    """
    part = checked(node, "", Trust(tuple(trusted_packages)))
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    try:
        return part.build(**arguments)
    except (TypeError, MisconfigurationException) as error:
        raise ValueError(str(error)) from error


def checked(node: DictConfig, name: str, trust: Trust) -> Part:
    """What a node asks to be built.

    Raises:
        ConfigFault: with all of its faults, if it has any.
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
    """A node as plain containers, in which nothing is left to be resolved."""
    if not OmegaConf.is_config(node):
        return node
    try:
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigFault([str(error).partition("\n")[0]]) from error


class _Check:
    """Makes parts of plain containers, and gathers their faults in the order they stand in."""

    def __init__(self, trust: Trust) -> None:
        self.faults: list[str] = []
        self._trust = trust

    def read(self, content: Any, name: str, is_part: bool = False) -> Any:
        """Make parts; `is_part` inside of another one, which alone could give what is missing."""
        if isinstance(content, list):
            items = enumerate(content)
            return [self.read(item, f"{name}[{index}]", is_part) for index, item in items]
        if content == "???":
            self.faults.append(f"{name}=???: has no value; set it")
        if not isinstance(content, dict):
            return content
        target = self._target(content, name) if "_target_" in content else None
        if target and is_part and not content.get("_partial_"):
            self.faults += _missing(content, name, target)
        arguments = {
            key: self.read(value, _joined(name, key), is_part or target is not None)
            for key, value in content.items()
            if "_target_" not in content or key not in SPECIAL
        }
        return Part(target, arguments, bool(content.get("_partial_"))) if target else arguments

    def _target(self, content: dict[Any, Any], name: str) -> Any:
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
        return target


def _joined(name: str, key: Any) -> str:
    return ".".join(filter(None, (name, str(key))))


def _missing(content: dict[str, Any], name: str, target: Any) -> Iterator[str]:
    """A line if a part lacks arguments that it cannot be built without."""
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
    except ValueError:  # of a part, which is told by itself
        hints = None
    if hints is None:
        return
    for key, value in content.items():
        place = _joined(name, key)
        if key not in hints and not str(key).startswith("_"):
            taker = _taker(content)
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield f"{place}: {taker} takes no {key!s}{hint}"
        elif not _fits(value, hints.get(key)):
            kinds = " or ".join(TYPE_NAMES[kind] for kind in _kinds(hints[key]))
            yield f"{place}={value}: must be {kinds}"


def arguments_of(node: Any, trusted_packages: Sequence[str] = ()) -> dict[str, Any] | None:
    """The arguments that a node's target takes, and what they are annotated as.

    None where that cannot be told, or where it takes any.
    """
    trust = Trust(tuple(trusted_packages))
    try:
        plain = _plain(node)
        return _arguments(plain, trust.target(plain["_target_"]), trust)
    except (ValueError, KeyError, TypeError):  # the node names nothing that may be built
        return None


def takes_null(node: DictConfig, key: str) -> bool:
    """Whether what a node builds says of an argument that it may be None."""
    return NoneType in get_args((arguments_of(node) or {}).get(key))


def _arguments(content: Any, target: Any, trust: Trust) -> dict[str, Any] | None:
    """As `arguments_of` says.

    A target that takes any keyword hands it on to what is built for it of `_partial_` nodes, and so
    takes what these take, as a `LanguageModel` takes the settings of its layers.
    """
    parameters = inspect.signature(target).parameters
    own = _hints(target) if str(target.__module__).startswith("newllm.") else {}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = {
        key: own.get(key)
        for key, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    if not takes_any:
        return known
    factories = list(_factories(content))
    for factory in factories:
        more = _arguments(factory, trust.target(factory["_target_"]), trust)
        if more is None:
            return None
        given = {*factory, "input_dim"}  # the width follows from what lies before
        known = {key: hint for key, hint in more.items() if key not in given} | known
    return known if factories else None


def _taker(content: dict[str, Any]) -> str:
    """What takes a node's arguments, for messages: its target, or the layers that it hands them."""
    layers = [node for value in content.values() if isinstance(value, list) for node in value]
    nodes = [node for node in layers if isinstance(node, dict) and "_target_" in node] or [content]
    names = (str(node["_target_"]).rpartition(".")[2] for node in nodes)
    return " and ".join(dict.fromkeys(names))


def _factories(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for value in content.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and item.get("_partial_") is True and "_target_" in item:
                yield item


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
