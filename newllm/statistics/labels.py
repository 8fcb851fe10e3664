"""What groups of runs are called: by the choices in which they differ, and no others."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from newllm.config.naming import choices
from newllm.runs.gathering import Run

Choices = Mapping[str, str]

LONGEST = 40  # characters; longer labels are reduced to the choices that tell groups apart
FIRST = ("name", "variant", "experiment", "model")  # whose values need no key


def choices_of(run: Run) -> dict[str, str]:
    """What was chosen for a run, without its seed, in the order of the command line.

    A run that does not know it, since it cannot be read, is known by its place.
    """
    overrides = run.result.get("overrides")
    return {"name": run.place} if overrides is None else choices(overrides)


def differing(groups: Sequence[Choices]) -> list[str]:
    """The keys whose values are not the same in all groups, those of `FIRST` first."""
    keys = list(dict.fromkeys([*FIRST, *(key for group in groups for key in group)]))
    return [key for key in keys if len({group.get(key) for group in groups}) > 1]


def labels(groups: Sequence[Choices], others: Sequence[Sequence[str]]) -> list[str]:
    """A label for each group, no two of them alike.

    Args:
        groups: the choices of each.
        others: of each group what else it may be known by, the best first; used where choices do
            not tell it from another.
    """
    keys = differing(groups) if len(groups) > 1 else [key for group in groups for key in group]
    found = _texts(groups, keys)
    if max(map(len, found), default=0) > LONGEST:
        found = _texts(groups, _fewest(groups, keys))
    shared = next(
        (group[key] for group in groups[:1] for key in FIRST if _is_shared(key, groups)), ""
    )
    found = [text or shared or "default" for text in found]
    for alternatives in zip(*others, strict=True):
        alike = {text for text, number in Counter(found).items() if number > 1}
        if alike and len(set(alternatives)) > 1:
            found = [
                (other if text == "default" else f"{text} {other}") if text in alike else text
                for text, other in zip(found, alternatives, strict=True)
            ]
    return numbered(found)


def _is_shared(key: str, groups: Sequence[Choices]) -> bool:
    return all(key in group for group in groups) and len({group[key] for group in groups}) == 1


def _texts(groups: Sequence[Choices], keys: Sequence[str]) -> list[str]:
    """`gated hidden_dim=8`: long keys by their last word, where that names no other."""
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


def _fewest(groups: Sequence[Choices], keys: Sequence[str]) -> list[str]:
    """Keys that tell as many groups apart as all do: always the one that adds most, then early."""
    chosen: list[str] = []

    def distinct(some: Iterable[str]) -> int:
        return len({tuple(group.get(key) for key in some) for group in groups})

    while distinct(chosen) < distinct(keys):
        chosen.append(max(keys, key=lambda key: distinct([*chosen, key])))
    return [key for key in keys if key in chosen]


def numbered(texts: Iterable[str]) -> list[str]:
    """The same texts, all different: a number is added to those that came before."""
    found: dict[str, None] = {}
    for text in texts:
        names = itertools.chain([text], (f"{text} ({number})" for number in itertools.count(2)))
        found[next(name for name in names if name not in found)] = None
    return list(found)
