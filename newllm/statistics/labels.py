"""Labels of groups of runs: the choices in which they differ, and no others."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from newllm.config.naming import choices
from newllm.runs.gathering import Run

Choices = Mapping[str, str]

FIRST = ("name", "variant", "experiment", "model")  # labels show their values without these keys


def choices_of(run: Run) -> dict[str, str]:
    """The choices of a run without its seed; its place as a name where they are not known."""
    overrides = run.result.get("overrides")
    return {"name": run.place} if overrides is None else choices(overrides)


def labels(groups: Sequence[Choices], others: Sequence[Sequence[str]]) -> list[str]:
    """A different label for each group.

    Args:
        groups: the choices of each group.
        others: other names of each group, the best first, for groups whose choices are alike.
    """
    keys = list(dict.fromkeys([*FIRST, *(key for group in groups for key in group)]))
    if len(groups) > 1:
        keys = [key for key in keys if len({group.get(key) for group in groups}) > 1]
    # A group without a choice of its own has the first name that all share.
    shared = (key for key in FIRST if len({group.get(key) for group in groups}) == 1)
    fallback = next((name for key in shared if (name := groups[0].get(key))), "default")
    found = [text or fallback for text in _texts(groups, keys)]
    for alternatives in zip(*others, strict=True):
        alike = {text for text, number in Counter(found).items() if number > 1}
        if alike and len(set(alternatives)) > 1:
            found = [
                (other if text == "default" else f"{text} {other}") if text in alike else text
                for text, other in zip(found, alternatives, strict=True)
            ]
    return numbered(found)


def _texts(groups: Sequence[Choices], keys: Sequence[str]) -> list[str]:
    """Such as `gated hidden_dim=8`: keys by their last word, unless another key has the same."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    short = {
        key: word if last[word := key.rpartition(".")[2]] == 1 and key[0] != "~" else key
        for key in keys
    }
    return [
        " ".join(
            group[key] if key in FIRST else f"{short[key]}={group[key]}".rstrip("=")
            for key in keys
            if key in group
        )
        for group in groups
    ]


def numbered(texts: Iterable[str]) -> list[str]:
    """The same texts, with a number added to those that occurred before."""
    found: dict[str, None] = {}
    for text in texts:
        names = itertools.chain([text], (f"{text} ({number})" for number in itertools.count(2)))
        found[next(name for name in names if name not in found)] = None
    return list(found)
