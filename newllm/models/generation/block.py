"""Blocks of tokens that a model draws in native code.

Shapes: B rows, K tokens of a block, V vocabulary, N choices.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from newllm.models.cell import ContextCell
from newllm.models.distribution import Sampling
from newllm.models.generation import launch
from newllm.models.generation.call import CALL, CELL, padded
from newllm.models.generation.packing import heads_of, packed_weights
from newllm.models.language_model import LanguageModel
from newllm.models.layer import State
from newllm.models.recurrence.built_in import HOOKS
from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.native.weights import has_native_code
from newllm.models.recurrence.parallel import Parallel
from newllm.models.recurrence.persistent import Persistent
from newllm.models.recurrence.reference import Reference
from newllm.models.recurrent import Recurrent

KNOWN_RECURRENCES = (Fused, Reference, Parallel, Persistent)
MOST_TOKENS = 256  # of a block
WEIGHTS_OF_A_BLOCK = 1 << 25  # that a block reads, roughly: it takes milliseconds at any size


def draws_in_native_code(model: LanguageModel) -> bool:
    """Whether the native code does just what the model would do, token by token.

    So every part must be of a kind it knows, without hooks or parametrizations, and of float32.
    """
    outside = (model, model.embedding, model.output, *model.layers)
    return (
        type(model) is LanguageModel
        and not model.training
        and model.positions is None
        and type(model.embedding) is nn.Embedding
        and model.embedding.max_norm is None
        and type(model.output) is nn.Linear
        and all(type(layer) is Recurrent for layer in model.layers)
        and all(
            type(layer.recurrence) in KNOWN_RECURRENCES and has_native_code(layer.cell)
            for layer in model.recurrent_layers
        )
        and not any(getattr(part, hooks) for part in outside for hooks in HOOKS)
        and {name for name, _ in model.output.named_parameters()} == {"weight", "bias"}
        and all(
            weight.dtype == torch.float32 and weight.device.type == "cpu"
            for weight in model.parameters()
        )
        and not torch.is_autocast_enabled("cpu")
    )


class Place(NamedTuple):
    """Where a block starts: the state of the model, and what each row reads next."""

    state: State
    unread_B: Tensor
    is_done_B: Tensor  # rows that have ended
    seen_BV: Tensor  # tokens that occurred, those in `unread_B` included


class Block(NamedTuple):
    """Tokens drawn, and the state before the last of them is read."""

    tokens_KB: Tensor
    state: State


class TokenBlocks:
    """Draws tokens of a model with its weights as they are now, block by block.

    Args:
        model: with `draws_in_native_code`.
        never_V: true for tokens that are never drawn.
        sampling: how tokens are drawn.
        num_rows: B.
        is_endless: whether rows go on after `<EOS>`, with `<BOS>`.

    Attributes:
        num_tokens: of a block that takes a few milliseconds.
    """

    def __init__(
        self,
        model: LanguageModel,
        never_V: Tensor,
        sampling: Sampling,
        num_rows: int,
        is_endless: bool,
    ) -> None:
        cells = [layer.cell for layer in model.recurrent_layers]
        self._cells = [cell for cell in cells if isinstance(cell, ContextCell)]
        self._choices_N = (~never_V).nonzero()[:, 0]
        self._weights = packed_weights(self._cells, model.output, self._choices_N)
        self._embedding = model.embedding.weight.detach().clone()
        self._num_rows = num_rows
        self._model_parameters = list(model.parameters())
        self._versions = self._current_versions()
        work = len(self._weights) * max(1, num_rows // 4)  # rows share what they read
        self.num_tokens = min(max(1, WEIGHTS_OF_A_BLOCK // work), MOST_TOKENS)
        self._inputs = [
            torch.zeros(num_rows, padded(cell.input_dim + cell.context_dim)) for cell in self._cells
        ]
        self._call = self._fixed_call(sampling, is_endless)

    def is_current(self) -> bool:
        """Whether the weights of the model are still those that were packed."""
        return self._versions == self._current_versions()

    def _current_versions(self) -> list[tuple[int, int]]:
        """Others after each change of a weight that PyTorch counts."""
        return [
            (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
            for weight in self._model_parameters
        ]

    def _fixed_call(self, sampling: Sampling, is_endless: bool) -> np.ndarray:
        """What is the same in all calls, with the arrays that it tells of kept alive."""
        num_rows, num_choices = self._num_rows, len(self._choices_N)
        hidden_stride = max(padded(cell.hidden_dim) for cell in self._cells)
        head_stride = max(len(heads_of(cell)) * padded(cell.context_dim) for cell in self._cells)
        self._scratch = {
            "first": torch.empty(num_rows, hidden_stride),
            "second": torch.empty(num_rows, hidden_stride),
            "head": torch.empty(num_rows, head_stride),
            "logits": torch.empty(num_rows, padded(num_choices)),
        }
        self._table = np.zeros(len(self._cells), CELL)
        for row, cell, inputs in zip(self._table, self._cells, self._inputs, strict=True):
            _describe(row, cell, inputs)
        arrays = {"weights": self._weights, "embedding": self._embedding, **self._scratch}
        return _record(
            arrays | {"choices": self._choices_N, "cells": self._table},
            num_rows=num_rows,
            num_cells=len(self._cells),
            num_embeddings=len(self._embedding),
            embedding_dim=self._embedding.shape[1],
            num_choices=num_choices,
            num_weights=len(self._weights),
            hidden_stride=hidden_stride,
            head_stride=head_stride,
            logits_stride=padded(num_choices),
            is_endless=is_endless,
            top_k=sampling.top_k or 0,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            temperature=0 if sampling.is_greedy else sampling.temperature,
            repetition_penalty=sampling.repetition_penalty,
        )

    def draw(self, place: Place, uniforms_KB: Tensor) -> Block | None:
        """Draw K tokens, or fewer if all rows end or if logits are not finite.

        None means that not even the first logits are finite.
        """
        for inputs, cell, context_BC in zip(self._inputs, self._cells, place.state, strict=True):
            inputs[:, cell.input_dim : cell.input_dim + cell.context_dim] = context_BC
        arrays = {
            "uniforms": uniforms_KB.contiguous(),
            "seen": place.seen_BV[:, self._choices_N].byte(),
            "is_done": place.is_done_B.byte(),
            "unread": place.unread_B.clone(),
            "drawn": torch.empty(uniforms_KB.shape, dtype=torch.int64),
            "num_drawn": torch.zeros(1, dtype=torch.int64),
            "is_finite": torch.ones(1, dtype=torch.int64),
        }
        _fill(self._call, arrays, num_tokens=len(uniforms_KB))
        launch.run(self._call)
        num_drawn = int(arrays["num_drawn"])
        if not arrays["is_finite"]:  # it has read one token more than it has drawn
            return self.draw(place, uniforms_KB[:num_drawn]) if num_drawn else None
        state = tuple(
            inputs[:, cell.input_dim : cell.input_dim + cell.context_dim].clone()
            for inputs, cell in zip(self._inputs, self._cells, strict=True)
        )
        return Block(arrays["drawn"][:num_drawn], state)


def _describe(row: Any, cell: ContextCell, inputs: Tensor) -> None:
    """Fill a record of `CELL`."""
    fields = {
        "input_dim": cell.input_dim,
        "context_dim": cell.context_dim,
        "hidden_dim": cell.hidden_dim,
        "num_layers": cell.num_layers,
        "num_parts": len(heads_of(cell)),
        "is_residual": hasattr(cell.fnn, "norms"),
        "is_normed": isinstance(cell.normalization, nn.LayerNorm),
        "is_clipped": cell.context_clip is not None,
        "clip": cell.context_clip or 0,
        "inputs": inputs.data_ptr(),
        "stride": inputs.shape[1],
    }
    assert {*fields} == {*(CELL.names or ())}
    for name, value in fields.items():
        row[name] = value


def _record(arrays: dict[str, Any], **numbers: float) -> np.ndarray:
    call = np.zeros(1, CALL)
    _fill(call, arrays, **numbers)
    return call


def _fill(call: np.ndarray, arrays: dict[str, Any], **numbers: float) -> None:
    """Set fields of a record; an array stands for its address."""
    for name, array in arrays.items():
        call[name] = array.data_ptr() if isinstance(array, Tensor) else array.ctypes.data
    for name, number in numbers.items():
        call[name] = number
