"""The losses of a model on one text of any length, read in chunks, by distance to its start.

Shapes: T tokens of a chunk, B one row, K octaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import TypeVar

import torch

from newllm.data.batch import device_of
from newllm.data.tokenizer import BEFORE_BLANK, BOS, EOS, UNK, Tokenizer
from newllm.models.language_model import LanguageModel, State

Number = TypeVar("Number", int, float)

CHUNK = 512  # tokens that are read at once
BLOCK = 1 << 16  # characters


@dataclass
class TextScore:
    """What is known of a text after its first tokens, and all that is needed to go on.

    Attributes:
        state: of the model; None before the first token.
        last: the last token, which the model has not read.
        num_bytes: of the text that the targets stand for; None if tokens stand for no bytes.
        num_unknown: targets that are `<UNK>`.
        losses: sum of the losses in nats by octave of the position: octave k holds the targets at
            positions 2^k to 2^(k + 1) - 1, where the first target of the text has position 1.
        numbers: of targets, likewise.
    """

    state: State | None = None
    last: int = BOS
    num_bytes: int | None = None
    num_unknown: int = 0
    losses: list[float] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Number of targets so far."""
        return sum(self.numbers)

    @property
    def loss(self) -> float:
        """Mean loss in nats per token."""
        return sum(self.losses) / max(1, self.num_tokens)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte; None if tokens stand for no bytes."""
        return sum(self.losses) / math.log(2) / self.num_bytes if self.num_bytes else None


@torch.inference_mode()
def score_text(
    model: LanguageModel, tokenizer: Tokenizer, tokens: Iterable[int], score: TextScore
) -> None:
    """Score the next tokens of a text, and add them to what is known of it.

    The model keeps one state, so its memory does not depend on the length, unless the state grows.

    Raises:
        ValueError: the model has a table of positions, and the text is longer.
    """
    bytes_V = tokenizer.bytes_V
    if bytes_V is not None and score.num_bytes is None:
        score.num_bytes = 0
    longest = model.positions.max_length if model.positions else math.inf
    for chunk in _chunks(tokens):
        if score.num_tokens + len(chunk) > longest:
            raise ValueError(
                f"the text is longer than the {longest} tokens for which the model has positions"
            )
        targets_T = torch.tensor(chunk)
        inputs_T = torch.tensor([score.last, *chunk[:-1]])
        tokens_BT, targets_BT = (part[None].to(device_of(model)) for part in (inputs_T, targets_T))
        loss_BT, _, score.state = model.score(tokens_BT, targets_BT, score.state)
        first = score.num_tokens + 1
        octave_T = torch.arange(first, first + len(chunk)).double().log2().floor().long()
        size = int(octave_T[-1]) + 1
        loss_T = loss_BT[0].double().cpu()
        loss_K = torch.zeros(size, dtype=torch.double).index_add_(0, octave_T, loss_T)
        score.losses = _added(score.losses, loss_K.tolist())
        score.numbers = _added(score.numbers, octave_T.bincount().tolist())
        score.num_unknown += int((targets_T == UNK).sum())
        score.last = chunk[-1]
        if score.num_bytes is not None and bytes_V is not None:
            score.num_bytes += int(bytes_V[chunk].sum())


def _added(before: Sequence[Number], more: Sequence[Number]) -> list[Number]:
    """Sums of numbers of two lists, of which the first may be shorter."""
    return [one + other for one, other in zip_longest(before, more, fillvalue=type(more[0])(0))]


def _chunks(tokens: Iterable[int]) -> Iterator[list[int]]:
    chunk: list[int] = []
    for token in tokens:
        chunk.append(token)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def tokens_of_file(path: Path, tokenizer: Tokenizer, is_whole: bool = True) -> Iterator[int]:
    """The tokens of a text file, read block by block, and `<EOS>` if the text ends with it.

    Raises:
        ValueError: it cannot be read, or is not UTF-8 text.
    """
    yield from chain.from_iterable(tokenizer.encode_blocks(_blocks(path)))
    if is_whole:
        yield EOS


def _blocks(path: Path) -> Iterator[str]:
    """A text file in blocks that begin with a blank or line break after a word.

    As in `newllm.data.sources.text`, a byte order mark is left out, and line ends are of one kind.
    """
    held: list[str] = []  # without a place to cut but at their start
    before = ""  # the last character of these
    try:
        with path.open(encoding="utf-8-sig") as file:
            while text := file.read(BLOCK):
                cuts = [found.start() for found in BEFORE_BLANK.finditer(before + text)]
                if cuts:
                    cut = cuts[-1] - len(before)
                    yield "".join([*held, text[:cut]])
                    held, text = [], text[cut:]
                held.append(text)
                before = text[-1]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text") from error
    if held:
        yield "".join(held)
