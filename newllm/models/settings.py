"""The settings of a model: which of them a factory takes, and their faults."""

import inspect
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from functools import partial
from typing import Any


def settings_of(factory: Callable[..., Any]) -> set[str]:
    """Names of the settings that a factory takes and was not given yet.

    If it takes any keyword, it also takes the settings of the factories among its arguments, and
    those of the class that it is derived from, unless that is abstract.
    """
    given = factory.keywords if isinstance(factory, partial) else {}
    made = factory.func if isinstance(factory, partial) else factory
    names: set[str] = set()
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            factories = [each for each in given.values() if isinstance(each, type | partial)]
            bases = made.__bases__ if isinstance(made, type) else ()
            concrete = [base for base in bases if not inspect.isabstract(base)]
            names.update(*map(settings_of, (*factories, *concrete)))
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            names.add(parameter.name)
    return names - {*given, "input_dim"}


def unknown_faults(settings: Iterable[str], known: Collection[str]) -> list[str]:
    """One line for each setting that is not known."""
    faults = []
    for name in settings:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
            faults.append(f"model.{name}: no layer of this model accepts it; {hint}")
    return faults


def dropout_faults(**probabilities: float) -> list[str]:
    """One line for each probability outside [0, 1)."""
    return [
        f"model.{key}={probability}: must be at least 0 and below 1"
        for key, probability in probabilities.items()
        if not 0 <= probability < 1
    ]


def head_faults(name: str, width: int, num_heads: int) -> list[str]:
    """A line if the heads do not divide a width, as the setting `name` gives it."""
    if num_heads > 0 and width % num_heads:
        return [f"model.num_heads={num_heads}: must divide model.{name}={width}"]
    return []
