"""The text of tokens that arrive one by one."""

from __future__ import annotations

from newllm.data.tokenizer import Tokenizer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the library makes of a part of a character
MOST_TOKENS = 64  # that are decoded again with each new one


class TextStream:
    """Decodes tokens as they arrive: `add` returns the text that a token completes.

    All of what it returns, with what `end` returns after the last token, is the text that
    `Tokenizer.decode` gives for all tokens at once, except for white space at the ends of a text
    whose tokens do not restore it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._told = ""  # of their text

    def add(self, token: int) -> str:
        """The new text; empty in the middle of a character."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith(UNFINISHED):
            return ""
        new = text[len(self._told) :]
        self._told = text
        if len(self._ids) > MOST_TOKENS:
            last = self._tokenizer.decode(self._ids[-1:])
            if last and not last.startswith(UNFINISHED):
                self._ids, self._told = self._ids[-1:], last
        return new

    def end(self) -> str:
        """What is left of a text that ends in the middle of a character."""
        return self._tokenizer.decode(self._ids)[len(self._told) :]
