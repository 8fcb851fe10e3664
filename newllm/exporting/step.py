"""One token of a model as a function of tensors: what is exported.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from newllm.data.tokenizer import BOS
from newllm.models.language_model import LanguageModel
from newllm.models.layer import MANY_TOKENS

TOKEN, LOGITS = "token", "logits"
BATCH, TOKENS = "batch", "tokens"  # dimensions of any size
NUM_EXAMPLES = 2  # rows and tokens of examples; torch takes a size of 1 for a constant


class Step(nn.Module):
    """Reads one token of each row: ids [B] and a state to logits [B, V] and the next state."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_B: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        logits_BTV, state = self.model(token_B[:, None], state)
        return logits_BTV[:, 0], *state


@dataclass(frozen=True)
class StateTensor:
    """A tensor of the state, as a client sees it.

    Attributes:
        name: of the input, such as `state.layers.0.1`.
        dtype: such as `float32`, by which numpy and torch know it.
        shape: `batch`, then sizes, and `tokens` where it grows by one with each token, from 0.
        initial: the state before the first token: a number, or nested lists of one row.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    initial: Any

    @property
    def next_name(self) -> str:
        """The name of the output."""
        return f"next_{self.name}"

    def initial_shape(self, batch_size: int) -> list[int]:
        """Its sizes before the first token."""
        sizes = {BATCH: batch_size, TOKENS: 0}
        return [sizes[size] if isinstance(size, str) else size for size in self.shape]


def check_steps(model: LanguageModel) -> None:
    """Check that one step can read every token.

    Raises:
        ValueError: the model sees the future, or its state grows with some tokens alone.
    """
    if model.sees_the_future:
        raise ValueError("it sees future tokens, which a step of one token does not read")
    for layer in model.parts:
        at_first, after_one, after_many = map(layer.state_bytes, (0, 1, MANY_TOKENS))
        if after_many - at_first != MANY_TOKENS * (after_one - at_first):
            raise ValueError(
                f"the state of {layer.description} grows with some tokens and not with others, "
                "which no exported step does"
            )


@torch.no_grad()
def example_inputs(model: LanguageModel) -> tuple[Tensor, ...]:
    """Inputs of `Step`: a token and the state after some tokens."""
    return torch.full((NUM_EXAMPLES,), BOS), *_state_after(model, NUM_EXAMPLES)


@torch.no_grad()
def state_tensors(model: LanguageModel) -> list[StateTensor]:
    """The tensors of a model's state, in order.

    Raises:
        ValueError: a tensor changes its shape otherwise than by growing from 0 tokens.
    """
    initial = model.initial_state(1)
    states = [initial, *(_state_after(model, num_tokens, 1) for num_tokens in (1, 2))]
    found = []
    for name, *parts in zip(_names(model), *states, strict=True):
        shape: list[int | str] = [BATCH]
        for sizes in zip(*(part.shape[1:] for part in parts), strict=True):
            if sizes not in ((0, 1, 2), (sizes[0],) * 3):
                told = ", ".join(str(list(part.shape)) for part in parts)
                raise ValueError(
                    f"{name} has shapes {told} after 0, 1 and 2 tokens; a size must stay as it is, "
                    "or grow from 0 by one with each token"
                )
            shape.append(sizes[0] if sizes[0] == sizes[1] else TOKENS)
        dtype = str(parts[0].dtype).removeprefix("torch.")
        found.append(StateTensor(name, dtype, tuple(shape), _initial(parts[0][0])))
    return found


def _state_after(
    model: LanguageModel, num_tokens: int, num_rows: int = NUM_EXAMPLES
) -> tuple[Tensor, ...]:
    _, state = model(torch.full((num_rows, num_tokens), BOS))
    # Copied: an export also looks at what a view is a view of.
    return tuple(part.clone() for part in state)


def _names(model: LanguageModel) -> Iterator[str]:
    names = [f"layers.{number}" for number in range(len(model.layers))]
    if model.positions is not None:
        names.insert(0, "positions")
    for name, part in zip(names, model.parts, strict=True):
        for number in range(len(part.initial_state(1))):
            yield f"state.{name}.{number}"


def _initial(row: Tensor) -> Any:
    """One number, if it stands everywhere, and else the nested lists of a row."""
    if row.numel() == 0:
        return 0
    first = row.flatten()[0]
    return first.item() if bool((row == first).all()) else row.tolist()
