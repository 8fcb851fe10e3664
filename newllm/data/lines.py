"""Many short texts in one string."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import overload


class Lines(Sequence[str]):
    """Texts end to end in one string: half the memory of as many strings of a sentence each."""

    def __init__(self, texts: Iterable[str]) -> None:
        texts = tuple(texts)
        self._text = "".join(texts)
        self._ends = array("q", accumulate(map(len, texts)))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            return self if chosen == range(len(self)) else Lines(self[i] for i in chosen)
        index = range(len(self))[index]  # refuses one that is too large, and counts from the end
        return self._text[self._ends[index - 1] if index else 0 : self._ends[index]]

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends:
            yield self._text[start:end]
            start = end
