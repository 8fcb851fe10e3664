"""Several models of one architecture, computed together as torch.func's ensembles are.

The rows of all models form one batch, those of the first model first. Whatever treats rows alike
is computed as it is written; only the modules that hold weights are replaced by ones that hold the
weights of all models.

Shapes: B rows of a model, T time (tokens).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.data.batch import IGNORE
from newllm.data.tokenizer import PAD
from newllm.models.ensemble_dropout import OwnDropout, OwnMasks, OwnNumbers, Unstackable
from newllm.models.ensemble_layers import REPLACED
from newllm.models.language_model import LanguageModel
from newllm.models.layer import State
from newllm.models.recurrence.compiled import OF_TORCH, Compiled
from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.parallel import Parallel
from newllm.models.recurrence.reference import Reference
from newllm.models.recurrent import Recurrent

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class ScoreInputs(NamedTuple):
    """What one of the models reads: the arguments of `LanguageModel.score`."""

    tokens_BT: Tensor
    targets_BT: Tensor
    state: State | None = None
    reset_BT: Tensor | None = None
    padding_matters: bool = True

    @property
    def form(self) -> tuple[Any, ...]:
        """What models must have in common to be computed together."""
        state = None
        if self.state is not None:
            state = tuple((part.shape[1:], part.dtype) for part in self.state)
        return self.reset_BT is None, state, self.tokens_BT.device


class Scores(NamedTuple):
    """What one of the models returns: losses [B, T], hits [B, T], and the state."""

    loss_BT: Tensor
    correct_BT: Tensor
    state: State


def obstacle(model: LanguageModel) -> str | None:
    """Why a model cannot be computed together with others; None if it can."""
    if model.recompute:
        return "model.recompute=true saves the memory that this would take"
    owners = 0
    for name, part in model.named_modules():
        own = list(part.parameters(recurse=False))
        kind = type(part).__name__
        if any(getattr(part, hooks) for hooks in HOOKS):
            return f"{name} ({kind}) has hooks"
        if own and type(part) not in REPLACED:
            return f"{name} ({kind}) holds weights of its own"
        if isinstance(part, nn.Embedding) and (part.padding_idx, part.max_norm) != (None, None):
            return f"{name} ({kind}) has a padding_idx or max_norm"
        if isinstance(part, nn.LayerNorm | nn.RMSNorm) and len(part.normalized_shape) > 1:
            return f"{name} ({kind}) normalizes several dimensions"
        if isinstance(part, Recurrent) and isinstance(part.recurrence, Parallel):
            return "recurrence=parallel orders rows by their tokens, not by their models"
        owners += len(own)
    if owners > sum(1 for _ in model.parameters()):
        return "parts of it share weights"
    return None


class Ensemble:
    """Models of one architecture, whose weights become views into those of the ensemble.

    So an optimizer that changes a model in place changes the ensemble. All else is that of the
    first model, and must stay as it is.

    Args:
        models: each of them without an `obstacle`.

    Raises:
        Unstackable: their shapes or types differ.
    """

    def __init__(self, models: Sequence[LanguageModel]) -> None:
        self.models = list(models)
        with torch.inference_mode(False), torch.no_grad():
            try:
                self._model = _joined(self.models)
            except (RuntimeError, ValueError) as error:
                raise Unstackable(f"their weights differ in shape ({error})") from error
        self.stacks = list(self._model.parameters())
        self._weights = [list(model.parameters()) for model in self.models]
        self._places = [
            [stack.data[number].data_ptr() for stack in self.stacks]
            for number in range(len(self.models))
        ]
        self._settings = [*map(_Settings, (*self.models, self._model))]
        self.take_weights()

    def take_weights(self) -> None:
        """Take the weights of the models again, which another ensemble may have taken."""
        if self._has_weights:
            return
        with torch.inference_mode(False), torch.no_grad():
            for number, weights in enumerate(self._weights):
                for weight, stack in zip(weights, self.stacks, strict=True):
                    stack.data[number].copy_(weight)
                    weight.data = stack.data[number]
                    stack.requires_grad_(weight.requires_grad)

    @property
    def _has_weights(self) -> bool:
        return all(
            weight.data_ptr() == place and weight.requires_grad == stack.requires_grad
            for weights, places in zip(self._weights, self._places, strict=True)
            for weight, place, stack in zip(weights, places, self.stacks, strict=True)
        )

    def score(
        self, given: Sequence[ScoreInputs], own_numbers: Sequence[OwnNumbers]
    ) -> list[Scores]:
        """Let every model read its rows; the gradients of the losses reach `stacks`.

        Shorter and fewer rows are padded.

        Raises:
            Unstackable: dropout is applied to something else than [B, T, ...]; or something else
                than weights changes.
        """
        _check_unchanged(self._settings[:-1])
        sizes = [tuple(each.tokens_BT.shape) for each in given]
        num_rows, num_tokens = (max(size) for size in zip(*sizes, strict=True))
        model = self._model
        model.train(self.models[0].training)
        own = OwnMasks(sizes, own_numbers)
        for part in model.modules():
            if isinstance(part, Recurrent):
                part.draw_masks = partial(own.of_cell, part.cell)  # type: ignore[method-assign]

        def joined(tensors: Sequence[Tensor], value: int) -> Tensor:
            return torch.cat([_padded(each, num_rows, num_tokens, value) for each in tensors])

        state, reset_BT = None, None
        if given[0].state is not None:
            states = [_more_rows(model, each.state, num_rows) for each in given]
            state = tuple(torch.cat(parts) for parts in zip(*states, strict=True))
        if given[0].reset_BT is not None:
            reset_BT = joined([each.reset_BT for each in given if each.reset_BT is not None], 0)
        with OwnDropout(own) if model.training else nullcontext():
            loss_BT, correct_BT, after = model.score(
                joined([each.tokens_BT for each in given], PAD),
                joined([each.targets_BT for each in given], IGNORE),
                state,
                reset_BT,
                any(each.padding_matters for each in given),
            )
        _check_unchanged(self._settings[-1:])
        firsts = range(0, num_rows * len(given), num_rows)
        return [
            Scores(
                loss_BT[first : first + rows, :tokens],
                correct_BT[first : first + rows, :tokens],
                tuple(part[first : first + rows] for part in after),
            )
            for first, (rows, tokens) in zip(firsts, sizes, strict=True)
        ]


def _joined(models: Sequence[LanguageModel]) -> LanguageModel:
    """A copy of the first model with the weights of all, and recurrences that can take them."""
    joined = copy.deepcopy(models[0])
    for name, part in list(joined.named_modules()):
        if make := REPLACED.get(type(part)):
            parent, _, own_name = name.rpartition(".")
            parts = [model.get_submodule(name) for model in models]
            setattr(joined.get_submodule(parent), own_name, make(parts))
        elif isinstance(part, Recurrent):
            kinds = (Compiled, Fused) if next(models[0].parameters()).is_cpu else (Compiled,)
            if isinstance(part.recurrence, kinds):
                part.recurrence = Reference()  # the code of these takes the weights of one model
    return joined


class _Settings:
    """What a model computes with beside its weights: plain attributes and buffers.

    Asked at every pass, so that it compares values by identity, and numbers and texts by value.
    """

    def __init__(self, model: LanguageModel) -> None:
        parts = [*model.named_modules()]
        self._values = [
            (f"{name}.{key}".lstrip("."), own, key, value)
            for name, part in parts
            for own in (vars(part), part._buffers)
            for key, value in own.items()
            if own is part._buffers or (key not in OF_TORCH and key != "training")
        ]
        self._versions = [(name, each, _version(each)) for name, each in model.named_buffers()]

    def changed(self) -> str | None:
        """The name of one that has changed; None if none has."""
        for name, own, key, value in self._values:
            now = own.get(key)
            if now is not value and not (isinstance(now, int | float | str) and now == value):
                return name
        return next((name for name, each, then in self._versions if _version(each) != then), None)


def _version(buffer: Tensor) -> int:
    """How often it was changed in place; unknown for one of inference mode."""
    return 0 if buffer.is_inference() else buffer._version


def _check_unchanged(all_settings: Sequence[_Settings]) -> None:
    for settings in all_settings:
        if name := settings.changed():
            raise Unstackable(f"{name} changes, which is no weight")


def _padded(tensor_BT: Tensor, num_rows: int, num_tokens: int, value: int) -> Tensor:
    rows, tokens = tensor_BT.shape
    if (rows, tokens) == (num_rows, num_tokens):
        return tensor_BT
    return F.pad(tensor_BT, (0, num_tokens - tokens, 0, num_rows - rows), value=value)


def _more_rows(model: LanguageModel, state: State | None, num_rows: int) -> State:
    """A state with rows added at the end."""
    assert state is not None
    missing = num_rows - len(state[0]) if state else 0
    if not missing:
        return state
    return tuple(torch.cat((part, part.new_zeros(missing, *part.shape[1:]))) for part in state)
