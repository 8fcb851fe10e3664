"""Where a value of a configuration is set, and which nodes are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

LONGEST_CHAIN = 20  # of references, so that those in a circle end too
REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")


def raw(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain containers, interpolations unresolved, without Hydra's part."""
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if key != "hydra"}


def descend(content: Any, name: str) -> Any:
    """The value at a dotted name; None where there is none."""
    for key in name.split("."):
        content = content.get(key) if isinstance(content, dict) else None
    return content


def leaves(content: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All values with their dotted names; an empty mapping is a value."""
    if name and not (isinstance(content, dict) and content):
        yield name, content
        return
    for key, value in content.items():
        yield from leaves(value, f"{name}.{key}".lstrip("."))


def origin(content: dict[str, Any], key: str) -> str:
    """The key that sets the value of a key: the end of its chain of ${...}.

    `data.batch_size` is `${recipe.batch_size}` by default, so `recipe.batch_size` sets it.

    Args:
        content: a configuration as `raw` gives it.
        key: dotted.
    """
    for _ in range(LONGEST_CHAIN):
        names = key.split(".")
        for depth in range(1, len(names) + 1):
            value = descend(content, ".".join(names[:depth]))
            if isinstance(value, str) and (match := REFERENCE.fullmatch(value)):
                key = ".".join((match[1], *names[depth:]))
                break
        else:
            return key
    return key


def blame_origin(config: DictConfig, fault: str) -> str:
    """A fault that begins with a key, with the key that sets its value instead."""
    match = re.match(r"[A-Za-z_]\w*(\.\w+)+", fault)
    return f"{origin(raw(config), match[0])}{fault[match.end() :]}" if match else fault


def overlap(key: str, name: str) -> bool:
    """Whether one of two dotted names is the other or stands below it."""
    return key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.")


def read_nodes(config: DictConfig, first: Sequence[str]) -> set[str]:
    """Dotted names of the nodes that are read: the given ones and all that they refer to."""
    content = raw(config)
    read: set[str] = set()
    waiting = list(first)
    while waiting:
        name = waiting.pop()
        if name not in read:
            read.add(name)
            waiting += _references(descend(content, name))
    return read


def _references(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield from REFERENCE.findall(content)
    elif isinstance(content, dict | list):
        for item in content.values() if isinstance(content, dict) else content:
            yield from _references(item)
