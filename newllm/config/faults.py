"""One wording for the faults of settings."""

from collections.abc import Collection, Iterable


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


def raise_faults(faults: Iterable[str]) -> None:
    """Raise one ValueError with a line for each fault, if there are any."""
    if lines := list(faults):
        raise ValueError("\n".join(lines))
