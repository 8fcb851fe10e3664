"""Text as a model draws it, and a dialogue whose state is kept from line to line."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from newllm.data.reading import printable
from newllm.data.text_stream import TextStream
from newllm.data.tokenizer import EOS, Tokenizer
from newllm.models.sampling import Continuation, prompt_tokens
from newllm.runs.directory import LoadedRun
from newllm.runs.saved_state import read_state, write_state

COMMANDS = (
    "/reset forgets everything, /save FILE saves the state, /load FILE restores it, /quit ends"
)


def text_of(
    continuation: Continuation,
    tokenizer: Tokenizer,
    max_tokens: float = math.inf,
    start: Sequence[int] = (),
) -> Iterator[str]:
    """A continuation of one row as text, piece by piece; `<EOS>` and the end are line breaks.

    Args:
        continuation: of one row.
        tokenizer: of the model.
        max_tokens: to draw.
        start: tokens whose text comes first; they are not read.
    """
    stream, at_end, fault = TextStream(tokenizer), False, None
    yield printable("".join(map(stream.add, start)))
    try:
        while max_tokens > 0 and (token_B := next(continuation, None)) is not None:
            max_tokens -= 1
            if at_end := int(token_B[0]) == EOS:
                yield printable(stream.end()) + "\n"
                stream = TextStream(tokenizer)
            else:
                yield printable(stream.add(int(token_B[0])))
    except ValueError as error:  # the model can draw no more
        fault = error
    if not at_end:
        yield printable(stream.end()) + "\n"
    if fault is not None:
        raise fault


class Dialogue:
    """Answers lines with a model's continuation of them.

    Args:
        run: whose model it is.
        continuation: of one row; the state is its own.
        max_tokens: of an answer.

    Raises:
        ValueError: the run was not trained on text.
    """

    def __init__(
        self, run: LoadedRun, continuation: Continuation, max_tokens: float = math.inf
    ) -> None:
        if run.tokenizer is None:
            raise ValueError(f"{run.path}: was not trained on text and has no tokenizer")
        self._run, self._tokenizer, self._continuation = run, run.tokenizer, continuation
        self._max_tokens = max_tokens

    def answers(self, lines: Iterable[str]) -> Iterator[str]:
        """Pieces of the answers to all lines, each ended by a line break.

        What commands and faults have to say is no answer, and goes to standard error.
        """
        for line in lines:
            try:
                if line.strip() == "/quit":
                    return
                if line.startswith("/"):
                    self._tell(self._obey(*line.split(maxsplit=1)))
                    continue
                self._continuation.read(prompt_tokens(self._tokenizer, line))
                yield from text_of(self._continuation, self._tokenizer, self._max_tokens)
            except (ValueError, OSError) as error:
                self._tell(str(error))

    @staticmethod
    def _tell(text: str) -> None:
        print(printable(text), file=sys.stderr)

    def _obey(self, command: str, argument: str = "") -> str:
        path = Path(argument.strip())
        if command == "/reset" and not argument:
            self._continuation.reset()
            return "the state is that of the beginning"
        if command in ("/save", "/load") and not argument:
            return f"{command}: needs a file; {COMMANDS}"
        if command == "/save":
            write_state(path, "dialogue", self._run, self._continuation.state_dict())
            return f"the state is in {path}"
        if command == "/load":
            self._continuation.load_state_dict(read_state(path, "dialogue", self._run))
            return f"the state is that of {path}"
        return f"no such command; {COMMANDS}"
