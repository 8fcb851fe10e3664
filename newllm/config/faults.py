"""One wording for the faults of settings."""

import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any


def too_small(part: str, least: int, **settings: int | None) -> list[str]:
    """One line for each setting of a part of the configuration that is below the least value.

    None is no value.
    """
    return [
        f"{part}.{key}={value}: must be at least {least}"
        for key, value in settings.items()
        if value is not None and not value >= least
    ]


def no_such_option(part: str, options: Collection[str], **settings: str) -> list[str]:
    """One line for each setting that is not among the options."""
    return [
        f"{part}.{key}={value}: no such option; options: {', '.join(options)}"
        for key, value in settings.items()
        if value not in options
    ]


def unused(part: str, other: str, constructor: Callable[..., Any], **settings: Any) -> list[str]:
    """One line for each setting with another value than its default, which `other` makes useless.

    Args:
        part: of the configuration.
        other: such as `data.machine`.
        constructor: whose parameters have the defaults.
        settings: by their names there.
    """
    parameters = inspect.signature(constructor).parameters
    return [
        f"{part}.{key}={value}: is not used with {other}"
        for key, value in settings.items()
        if value != parameters[key].default
    ]


def raise_faults(faults: Iterable[str]) -> None:
    """Raise one ValueError with a line for each fault, if there are any."""
    if lines := list(faults):
        raise ValueError("\n".join(lines))
