"""Tokens that a language model draws, one after the other.

Shapes: B rows, T time (tokens), K tokens of a block, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from newllm.data.batch import device_of
from newllm.data.tokenizer import BOS, EOS, PAD, UNK, Tokenizer
from newllm.models.distribution import Sampling, Uniforms, draw
from newllm.models.generation import launch
from newllm.models.generation.block import Block, Place, TokenBlocks, draws_in_native_code
from newllm.models.language_model import LanguageModel, State
from newllm.models.layer import MANY_TOKENS

# What `Continuation.state_dict` holds.
OF_A_CONTINUATION = ("state", "_num_read", "_logits_BV", "_drawn_B", "_seen_BV", "_is_done_B")
# A text that is this long by the model alone is likely to last until native code has paid for the
# time that it takes to be loaded (0.4 s), or compiled where no earlier process has done so (10 s).
WORTH_LOADING, WORTH_COMPILING = 1_000, 30_000


class NoMorePositions(ValueError):
    """The model has a table of positions, and has used all of them."""


class Continuation(Iterator[Tensor]):
    """The tokens [B] that a model draws one after the other, each row on its own.

    A row that has drawn `<EOS>` yields `<PAD>` from then on, and the iterator ends when all rows
    have; an endless one begins a new text after `<EOS>`, with its state as it is. No token of
    `never_drawn` is drawn. `read` may be called at any time.

    A model that `draws_in_native_code` draws blocks of tokens ahead. Nothing shows this but the
    speed: what was drawn and not yet handed out is forgotten and drawn again where it matters. The
    tokens are the same as without, except where rounding decides between two of them.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        sampling: how tokens are drawn.
        num_rows: B.
        seed: of the draws.
        is_endless: whether it goes on after `<EOS>`.

    Raises:
        ValueError: the model sees the future, or an argument is out of range.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        sampling: Sampling | None = None,
        num_rows: int = 1,
        seed: int = 0,
        is_endless: bool = False,
    ) -> None:
        if model.sees_the_future:
            raise ValueError(
                "the model was trained with access to future tokens and cannot generate text"
            )
        if num_rows < 1:
            raise ValueError(f"num={num_rows}: must be at least 1")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed}: must be from 0 to 2**63 - 1")
        self._model, self._sampling = model, sampling or Sampling()
        self._num_rows, self._is_endless = num_rows, is_endless
        self._device = device_of(model)
        self._uniforms = Uniforms(num_rows, seed)
        self._never_V = never_drawn(model, tokenizer)
        self._num_positions = model.positions.max_length if model.positions else math.inf
        self._num_drawn = 0  # since it was made
        self._blocks: TokenBlocks | None = None
        self._forget()

    def _forget(self) -> None:
        self._state: State | None = None
        self._num_read = 0
        self._logits_BV: Tensor | None = None
        self._drawn_B: Tensor | None = None  # not yet read
        self._seen_BV = torch.zeros(self._num_rows, len(self._never_V), dtype=torch.bool)
        self._is_done_B = torch.zeros(self._num_rows, dtype=torch.bool)
        # Drawn from where the attributes above are, and the number of tokens handed out of it.
        self._block: Block | None = None
        self._ahead: list[Tensor] = []
        self._num_taken = 0

    def reset(self) -> None:
        """Forget everything that was read and drawn; the draws go on."""
        self._settle()
        self._forget()

    @property
    def state(self) -> State | None:
        """After all tokens that were read and drawn, except for the last one drawn."""
        self._settle()
        return self._state

    def state_dict(self) -> dict[str, object]:
        """Everything but the model and the generator of the draws, as tensors and numbers."""
        state = self.state
        return {
            name: state if name == "state" else getattr(self, name) for name in OF_A_CONTINUATION
        }

    def load_state_dict(self, content: object) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: it is that of another model or number of rows, or something else.
        """
        if not (
            isinstance(content, dict)
            and content.keys() == set(OF_A_CONTINUATION)
            and self._may_be_own(content)
        ):
            raise ValueError("this is not a state of this model")
        self.reset()
        for name, value in content.items():
            setattr(self, "_state" if name == "state" else name, value)
        if self._state is not None:
            self._state = tuple(part.to(self._device) for part in self._state)

    def _may_be_own(self, content: Mapping[str, Any]) -> bool:
        """Whether values have the types, shapes and ranges of the attributes of these names."""
        logits_BV, drawn_B = content["_logits_BV"], content["_drawn_B"]
        num_read, like_BV = content["_num_read"], self._seen_BV
        return (
            type(num_read) is int
            and num_read >= 0
            and _is_like(like_BV, content["_seen_BV"])
            and _is_like(self._is_done_B, content["_is_done_B"])
            and (
                logits_BV is None
                or _is_like(like_BV.to(next(self._model.parameters()).dtype), logits_BV)
            )
            and (drawn_B is None or _is_like(self._is_done_B.long(), drawn_B))
            and (
                drawn_B is None or 0 <= int(drawn_B.min()) <= int(drawn_B.max()) < like_BV.shape[1]
            )
            and is_state_of(self._model, content["state"], self._num_rows)
        )

    def read(self, tokens: Sequence[int]) -> None:
        """Let every row read some tokens, after those that it has drawn.

        Raises:
            NoMorePositions: the model has a table of positions, which is too short.
        """
        self._settle()
        if self._drawn_B is not None:
            self._advance(self._drawn_B.masked_fill(self._drawn_B == EOS, PAD)[:, None])
        self._drawn_B = None
        self._is_done_B = torch.zeros_like(self._is_done_B)
        if tokens:
            self._advance(torch.tensor([list(tokens)] * self._num_rows))

    @torch.inference_mode()
    def _advance(self, tokens_BT: Tensor) -> None:
        self._note_read(tokens_BT)
        if self._num_read > self._num_positions:
            raise NoMorePositions(
                f"the model has a table of {self._num_positions} positions and cannot go on"
            )
        logits_BTV, self._state = self._model(tokens_BT.to(self._device), self._state)
        self._logits_BV = logits_BTV[:, -1].cpu()

    def _note_read(self, tokens_BT: Tensor) -> None:
        self._num_read += int((tokens_BT != PAD).sum(1).amax())
        self._seen_BV = self._seen_BV.scatter(1, tokens_BT, True)

    def __next__(self) -> Tensor:
        if self._num_taken < len(self._ahead):
            self._num_taken += 1
            return self._ahead[self._num_taken - 1]
        self._settle()
        if self._drawn_B is not None and not self._is_endless and self._is_done_B.all():
            raise StopIteration
        return next(self) if self._draw_ahead() else self._draw_one()

    def _following(self, drawn: Tensor) -> Tensor:
        """What rows read after the tokens that they have drawn."""
        return drawn.masked_fill(drawn == EOS, BOS if self._is_endless else PAD)

    @torch.inference_mode()
    def _draw_one(self) -> Tensor:
        """Draw a token by the model itself."""
        if self._drawn_B is not None:
            self._advance(self._following(self._drawn_B)[:, None])
        if self._logits_BV is None:
            self._advance(torch.full((self._num_rows, 1), BOS))
        logits_BV = self._logits_BV
        assert logits_BV is not None
        if not bool(logits_BV.isfinite().all()):
            raise ValueError("the model's logits are not finite: its weights are too large")
        allowed_BV = logits_BV.masked_fill(self._never_V, -torch.inf)
        probability_BV = self._sampling.probabilities(allowed_BV, self._seen_BV)
        token_B = draw(probability_BV, self._uniforms.use(1)[0]).masked_fill(self._is_done_B, PAD)
        self._note_drawn(token_B[None])
        return token_B

    def _note_drawn(self, tokens_KB: Tensor) -> None:
        self._drawn_B = tokens_KB[-1]
        self._num_drawn += len(tokens_KB)
        if not self._is_endless:
            self._is_done_B = self._is_done_B | (tokens_KB == EOS).any(0)

    def _draw_ahead(self) -> bool:
        """Draw a block of tokens in native code, if there is any for this model."""
        if self._drawn_B is None or not self._has_blocks():
            return False
        assert self._blocks is not None
        self._block = self._block_of(self._blocks.num_tokens)
        self._ahead = [] if self._block is None else list(self._block.tokens_KB.unbind())
        return self._block is not None

    def _has_blocks(self) -> bool:
        if self._blocks is not None and self._blocks.is_current():
            return True
        is_worth_it = launch.is_loaded() or (
            self._num_drawn >= WORTH_LOADING
            and (self._num_drawn >= WORTH_COMPILING or launch.is_in_cache())
        )
        if not is_worth_it or not draws_in_native_code(self._model):
            return False
        self._blocks = TokenBlocks(
            self._model, self._never_V, self._sampling, self._num_rows, self._is_endless
        )
        return True

    @torch.inference_mode()
    def _block_of(self, num_tokens: int) -> Block | None:
        """The next tokens, drawn in native code; the attributes stay as they are."""
        assert self._blocks is not None
        assert self._drawn_B is not None
        assert self._state is not None
        unread_B = self._following(self._drawn_B)
        seen_BV = self._seen_BV.scatter(1, unread_B[:, None], True)
        place = Place(self._state, unread_B, self._is_done_B, seen_BV)
        return self._blocks.draw(place, self._uniforms.ahead(num_tokens))

    @torch.inference_mode()
    def _settle(self) -> None:
        """Make the attributes those after the last token handed out; forget what comes after it."""
        num_taken, block = self._num_taken, self._block
        self._block, self._ahead, self._num_taken = None, [], 0
        if block is None or num_taken == 0:
            return
        if num_taken < len(block.tokens_KB):
            block = self._block_of(num_taken)
            assert block is not None
        assert self._drawn_B is not None
        self._uniforms.use(num_taken)
        read_KB = self._following(torch.cat([self._drawn_B[None], block.tokens_KB[:-1]]))
        self._note_read(read_KB.t())
        self._state, self._logits_BV = block.state, None  # logits follow when the token is read
        self._note_drawn(block.tokens_KB)


def never_drawn(model: LanguageModel, tokenizer: Tokenizer) -> Tensor:
    """Bool [V], true for `<PAD>`, `<UNK>`, `<BOS>` and classes without a token."""
    never_V = torch.ones(model.vocabulary_size, dtype=torch.bool)
    never_V[: tokenizer.size] = False
    never_V[[PAD, UNK, BOS]] = True
    return never_V


def _is_like(own: Tensor, value: object) -> bool:
    """Whether a value is a tensor of the same type and shape."""
    return isinstance(value, Tensor) and (value.dtype, value.shape) == (own.dtype, own.shape)


@torch.inference_mode()
def is_state_of(model: LanguageModel, state: object, num_rows: int) -> bool:
    """Whether a state may be one of a model, or None; a growing state may have any length."""
    if state is None:
        return True
    initial = [
        (like, part.state_bytes(MANY_TOKENS) > part.state_bytes(0))
        for part in model.parts
        for like in part.initial_state(num_rows)
    ]
    if not (
        isinstance(state, tuple)
        and len(state) == len(initial)
        and all(
            isinstance(part, Tensor) and _may_become(like, part, grows)
            for part, (like, grows) in zip(state, initial, strict=True)
        )
    ):
        return False
    state = tuple(part.to(device_of(model)) for part in state)
    try:  # sizes that fit one by one may not fit each other; padding changes nothing
        model(torch.full((num_rows, 1), PAD, device=device_of(model)), state)
    except (RuntimeError, IndexError):
        return False
    return True


def _may_become(initial: Tensor, part: Tensor, grows: bool) -> bool:
    """Whether a part of the initial state may have the shape of another one after some tokens."""
    if (part.dtype, part.dim(), len(part)) != (initial.dtype, initial.dim(), len(initial)):
        return False
    changed = [(a, b) for a, b in zip(initial.shape, part.shape, strict=True) if a != b]
    return len(changed) <= 1 and all(a == 0 or (grows and a < b) for a, b in changed)


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt.

    Raises:
        ValueError: it holds unknown words, or what Python makes of bytes that are not UTF-8.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError("the prompt is not UTF-8 text") from None
    tokens = tokenizer.encode_prompt(prompt)
    if UNK in tokens:
        unknown = [word for word in prompt.split() if UNK in tokenizer.encode_prompt(word)]
        raise ValueError(f"the prompt contains unknown words: {unknown}")
    return tokens


def sample_sentences(
    model: LanguageModel,
    tokenizer: Tokenizer,
    num_sentences: int,
    prompt: str = "",
    max_tokens: float = 32,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> list[str]:
    """Continue a prompt up to `<EOS>` or `max_tokens` tokens, including the prompt.

    A model of pairs of prompts and responses gives the responses alone.

    Raises:
        ValueError: the model sees the future, an argument is out of range, or the prompt is longer
            than `max_tokens` or holds unknown words.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens}: must be at least 1")
    read = prompt_tokens(tokenizer, prompt)
    if len(read) > max_tokens:
        raise ValueError(f"the prompt has {len(read)} tokens; the maximum is {max_tokens}")
    continuation = Continuation(model, tokenizer, sampling, num_sentences, seed)
    continuation.read(read)
    left = None if max_tokens == math.inf else int(max_tokens) - len(read)
    drawn = [token_B.tolist() for token_B in islice(continuation, left)]
    sentences = zip(*drawn, strict=True) if drawn else [()] * num_sentences
    first = [] if tokenizer.is_of_pairs else read
    return [tokenizer.decode([*first, *sentence]) for sentence in sentences]
