"""Drawing tokens from a language model.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from newllm.config.faults import raise_faults
from newllm.data.batch import device_of
from newllm.data.tokenizer import BOS, EOS, PAD, UNK, Tokenizer
from newllm.models.language_model import LanguageModel, State


@dataclass(frozen=True)
class Sampling:
    """The distribution that tokens are drawn from. What limits it acts in the order given here.

    Attributes:
        repetition_penalty: by which the logits of tokens that were read or drawn are divided, or
            multiplied if they are negative (Keskar et al. 2019, arXiv 1909.05858).
        temperature: by which logits are divided; 0 always takes the likeliest token.
        top_k: only the `top_k` likeliest tokens; None means all.
        top_p: only the likeliest tokens that together reach this probability (Holtzman et al.
            2020, arXiv 1904.09751).
        min_p: only tokens with at least this share of the probability of the likeliest one (Nguyen
            et al. 2024, arXiv 2407.01082).

    Raises:
        ValueError: an attribute is out of range; one line for each.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        wanted = {
            "temperature": (0 <= self.temperature < math.inf, "must be at least 0"),
            "top_k": (self.top_k is None or self.top_k >= 1, "must be at least 1"),
            "top_p": (0 < self.top_p <= 1, "must be above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "must be from 0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "must be above 0"),
        }
        wrong = {name: told for name, (is_right, told) in wanted.items() if not is_right}
        raise_faults([f"{name}={getattr(self, name)}: {told}" for name, told in wrong.items()])

    def probabilities(self, logits_BV: Tensor, seen_BV: Tensor) -> Tensor:
        """The probabilities [B, V] of logits; `seen_BV` is true for tokens that occurred."""
        if self.repetition_penalty != 1:
            penalty = self.repetition_penalty
            lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
            logits_BV = torch.where(seen_BV, lowered_BV, logits_BV)
        if self.temperature == 0:
            likeliest_B = logits_BV.argmax(-1, keepdim=True)
            return torch.zeros_like(logits_BV).scatter_(-1, likeliest_B, 1.0)
        logits_BV = logits_BV / self.temperature
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            lowest_B1 = logits_BV.topk(self.top_k).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < lowest_B1, -torch.inf)
        probability_BV = logits_BV.softmax(-1)
        if self.top_p < 1:
            sorted_BV, order_BV = probability_BV.sort(descending=True)
            before_BV = sorted_BV.cumsum(-1) - sorted_BV
            kept_BV = torch.zeros_like(sorted_BV).scatter_(
                -1, order_BV, sorted_BV * (before_BV < self.top_p)
            )
            probability_BV = kept_BV / kept_BV.sum(-1, keepdim=True)
        if self.min_p > 0:
            least_B1 = self.min_p * probability_BV.amax(-1, keepdim=True)
            probability_BV = probability_BV * (probability_BV >= least_B1)
        return probability_BV / probability_BV.sum(-1, keepdim=True)


# What `Continuation.state_dict` holds.
OF_A_CONTINUATION = ("state", "_num_read", "_logits_BV", "_drawn_B", "_seen_BV", "_is_done_B")


class NoMorePositions(ValueError):
    """The model has a table of positions, and has used all of them."""


class Continuation(Iterator[Tensor]):
    """The tokens [B] that a model draws one after the other, each row on its own.

    A row that has drawn `<EOS>` yields `<PAD>` from then on, and the iterator ends when all rows
    have; an endless one begins a new text after `<EOS>`, with its state as it is. No token of
    `never_drawn` is drawn. `read` may be called at any time.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        sampling: how tokens are drawn.
        num_rows: B.
        seed: of the draws.
        is_endless: whether it goes on after `<EOS>`.

    Attributes:
        state: after all tokens that were read and drawn, except for the last one drawn.

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
        self._generator = torch.Generator().manual_seed(seed)
        self._never_V = never_drawn(model, tokenizer)
        self._num_positions = model.positions.max_length if model.positions else math.inf
        self.reset()

    def reset(self) -> None:
        """Forget everything that was read and drawn; the draws go on."""
        self.state: State | None = None
        self._num_read = 0
        self._logits_BV: Tensor | None = None
        self._drawn_B: Tensor | None = None  # not yet read
        self._seen_BV = torch.zeros(self._num_rows, len(self._never_V), dtype=torch.bool)
        self._is_done_B = torch.zeros(self._num_rows, dtype=torch.bool)

    def state_dict(self) -> dict[str, object]:
        """Everything but the model and the generator of the draws, as tensors and numbers."""
        return {name: getattr(self, name) for name in OF_A_CONTINUATION}

    def load_state_dict(self, content: object) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: it is that of another model or number of rows, or something else.
        """
        own = {"_seen_BV": self._seen_BV.shape, "_is_done_B": self._is_done_B.shape}
        if not (
            isinstance(content, dict)
            and content.keys() == set(OF_A_CONTINUATION)
            and all(
                isinstance(content[name], Tensor) and content[name].shape == shape
                for name, shape in own.items()
            )
            and is_state_of(self._model, content["state"], self._num_rows)
        ):
            raise ValueError("it is not a state of this model")
        for name, value in content.items():
            setattr(self, name, value)
        if self.state is not None:
            self.state = tuple(part.to(self._device) for part in self.state)

    def read(self, tokens: Sequence[int]) -> None:
        """Let every row read some tokens, after those that it has drawn.

        Raises:
            NoMorePositions: the model has a table of positions, which is too short.
        """
        if self._drawn_B is not None:
            self._advance(self._drawn_B.masked_fill(self._drawn_B == EOS, PAD)[:, None])
        self._drawn_B = None
        self._is_done_B[:] = False
        if tokens:
            self._advance(torch.tensor([list(tokens)] * self._num_rows))

    @torch.inference_mode()
    def _advance(self, tokens_BT: Tensor) -> None:
        self._num_read += int((tokens_BT != PAD).sum(1).amax())
        if self._num_read > self._num_positions:
            raise NoMorePositions(
                f"the model has a table of {self._num_positions} positions and cannot go on"
            )
        logits_BTV, self.state = self._model(tokens_BT.to(self._device), self.state)
        self._logits_BV = logits_BTV[:, -1].cpu()
        self._seen_BV.scatter_(1, tokens_BT, True)

    @torch.inference_mode()
    def __next__(self) -> Tensor:
        if self._drawn_B is not None:
            following_B = self._drawn_B
            if self._is_endless:
                following_B = following_B.masked_fill(following_B == EOS, BOS)
            elif self._is_done_B.all():
                raise StopIteration
            else:
                following_B = following_B.masked_fill(self._is_done_B, PAD)
            self._advance(following_B[:, None])
        if self._logits_BV is None:
            self._advance(torch.full((self._num_rows, 1), BOS))
        logits_BV = self._logits_BV
        assert logits_BV is not None
        if not bool(logits_BV.isfinite().all()):
            raise ValueError("the model's logits are not finite: its weights are too large")
        allowed_BV = logits_BV.masked_fill(self._never_V, -torch.inf)
        probability_BV = self._sampling.probabilities(allowed_BV, self._seen_BV)
        token_B = torch.multinomial(probability_BV, 1, generator=self._generator)[:, 0]
        self._drawn_B = token_B = token_B.masked_fill(self._is_done_B, PAD)
        self._is_done_B |= (token_B == EOS) & (not self._is_endless)
        return token_B


def never_drawn(model: LanguageModel, tokenizer: Tokenizer) -> Tensor:
    """Bool [V], true for `<PAD>`, `<UNK>`, `<BOS>` and classes without a token."""
    never_V = torch.ones(model.vocabulary_size, dtype=torch.bool)
    never_V[: tokenizer.size] = False
    never_V[[PAD, UNK, BOS]] = True
    return never_V


def is_state_of(model: LanguageModel, state: object, num_rows: int) -> bool:
    """Whether a state may be one of a model, or None; a growing state may have any length."""
    initial = model.initial_state(num_rows)
    if state is None:
        return True
    return (
        isinstance(state, tuple)
        and len(state) == len(initial)
        and all(
            isinstance(part, Tensor)
            and part.dtype == like.dtype
            and part.dim() == like.dim()
            and part.shape[0] == like.shape[0]
            and sum(a != b for a, b in zip(part.shape, like.shape, strict=True)) <= 1
            for part, like in zip(state, initial, strict=True)
        )
    )


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt.

    Raises:
        ValueError: it holds unknown words.
    """
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
