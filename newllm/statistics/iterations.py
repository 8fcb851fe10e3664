"""The error of `recurrence=parallel` after few iterations.

Shapes: B batch, T time (tokens), C context.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from newllm.data.tokenizer import PAD
from newllm.models.language_model import LanguageModel
from newllm.models.recurrence.parallel import Parallel
from newllm.models.recurrence.reference import Chunk
from newllm.models.recurrent import as_vector

TINY = 1e-30  # replaces the square of no error


@torch.no_grad()
def iteration_errors(model: LanguageModel, tokens_BT: Tensor) -> list[float]:
    """The error of the contexts of the first recurrent layer after 1, 2, ... iterations.

    After k iterations, the first k contexts are exact by construction; the error is that of the
    others: a root mean square, divided by that of the first guess for the same contexts. The list
    ends where all contexts are exact, or where they no longer change.
    """
    layer = model.recurrent_layers[0]
    chunks: list[Chunk] = []

    def keep(_: object, given: tuple[Any, ...]) -> None:
        inputs_BTE, _, pad_BT, reset_BT = given
        state = layer.initial_state(len(inputs_BTE))
        chunks.append(Chunk(inputs_BTE, state, None, pad_BT, reset_BT))

    with layer.register_forward_pre_hook(keep):
        model(tokens_BT)
    exact_TBC = model.trace(tokens_BT).contexts_BTC.transpose(0, 1)
    is_real_TB = (tokens_BT != PAD).t()
    squares_TB: list[Tensor] = []
    for states in islice(Parallel().estimates(layer.cell, chunks[0]), len(exact_TBC)):
        contexts_TBC = torch.stack([as_vector(state) for state in zip(*states, strict=True)])
        error_TB = (contexts_TBC - exact_TBC).square().sum(-1)
        squares_TB.append(error_TB.masked_fill(~is_real_TB, 0))
    guess_TB = squares_TB[0]
    return [
        float((after_TB[number:].sum() / guess_TB[number:].sum().clamp(min=TINY)).sqrt())
        for number, after_TB in enumerate(squares_TB[1:], start=1)
    ]
