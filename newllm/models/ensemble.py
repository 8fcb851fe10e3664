"""Several models of one architecture, computed together as torch.func's ensembles are.

The rows of all models form one batch, those of the first model first. Whatever treats rows alike
is computed as it is written; only the modules that hold weights are replaced by ones that hold the
weights of all models.

Shapes: S models, B rows of a model, T time (tokens), N masks of a step, M their width, I and O
features of a Linear, V vocabulary, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from newllm.data.batch import IGNORE
from newllm.data.tokenizer import PAD
from newllm.models.cell import Cell
from newllm.models.language_model import LanguageModel
from newllm.models.layer import State
from newllm.models.recurrence.compiled import Compiled
from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.reference import DropoutMasks, Reference
from newllm.models.recurrent import Recurrent

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Within it, random numbers come from the generators of one of the models.
OwnNumbers = Callable[[], AbstractContextManager[None]]


class Unstackable(ValueError):
    """The models cannot be computed together."""


class Given(NamedTuple):
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


class EnsembleLinear(nn.Module):
    """The Linears of all models."""

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight, self.bias = _stacked(parts, "weight"), _stacked(parts, "bias")

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [S B, ..., I] to [S B, ..., O]."""
        assert self.weight is not None
        rows_SRI = _by_model(inputs, len(self.weight))
        weight_SIO = self.weight.transpose(1, 2)
        if self.bias is None:
            outputs = torch.bmm(rows_SRI, weight_SIO)
        else:
            outputs = torch.baddbmm(self.bias[:, None], rows_SRI, weight_SIO)
        return outputs.view(*inputs.shape[:-1], -1)


class EnsembleEmbedding(nn.Module):
    """The tables of all models."""

    def __init__(self, parts: Sequence[nn.Embedding]) -> None:
        super().__init__()
        self.weight = _stacked(parts, "weight")

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids [S B, ...]."""
        assert self.weight is not None
        num_models, num_ids, _ = self.weight.shape
        first_S1 = num_ids * torch.arange(num_models, device=ids.device)[:, None]
        places = (_by_model(ids[..., None], num_models)[..., 0] + first_S1).view(ids.shape)
        return F.embedding(places, self.weight.flatten(0, 1))


class EnsembleNorm(nn.Module):
    """The LayerNorms or RMSNorms of all models, over the last dimension."""

    def __init__(self, parts: Sequence[nn.LayerNorm] | Sequence[nn.RMSNorm]) -> None:
        super().__init__()
        self.weight = _stacked(parts, "weight")
        self.bias = _stacked(parts, "bias") if isinstance(parts[0], nn.LayerNorm) else None
        kind: type[nn.Module] = type(parts[0])
        shape, eps = parts[0].normalized_shape, parts[0].eps
        self.normalize = kind(shape, eps, elementwise_affine=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalize [S B, ..., D]."""
        normed: Tensor = self.normalize(inputs)
        if self.weight is None:
            return normed
        rows_SRD = _by_model(normed, len(self.weight))
        if self.bias is None:
            return (rows_SRD * self.weight[:, None]).view(inputs.shape)
        return torch.addcmul(self.bias[:, None], rows_SRD, self.weight[:, None]).view(inputs.shape)


REPLACED: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Linear: EnsembleLinear,
    nn.Embedding: EnsembleEmbedding,
    nn.LayerNorm: EnsembleNorm,
    nn.RMSNorm: EnsembleNorm,
}


def _stacked(parts: Sequence[nn.Module], name: str) -> nn.Parameter | None:
    """A weight of all models, with a leading dimension for the models."""
    if (first := getattr(parts[0], name)) is None:
        return None
    stack = torch.stack([getattr(part, name).detach() for part in parts])
    return nn.Parameter(stack, requires_grad=first.requires_grad)


def _by_model(tensor: Tensor, num_models: int) -> Tensor:
    """The rows of each model [S, R, D] of a tensor [S B, ..., D]."""
    if tensor.dim() < 2 or len(tensor) % num_models:
        raise Unstackable(f"a part reads a tensor {list(tensor.shape)}, not [batch, ...]")
    return tensor.reshape(num_models, -1, tensor.shape[-1])


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
        owners += len(own)
    if owners > sum(1 for _ in model.parameters()):
        return "parts of it share weights"
    return None


class Ensemble:
    """Models of one architecture, whose weights become views into those of the ensemble.

    So an optimizer that changes a model in place changes the ensemble.

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
            for number, weights in enumerate(self._weights):
                for weight, stack in zip(weights, self.stacks, strict=True):
                    weight.data = stack.data[number]

    @property
    def is_current(self) -> bool:
        """Whether the weights of the models are still those of the ensemble."""
        return all(
            weight.data_ptr() == row.data_ptr() and weight.requires_grad == stack.requires_grad
            for number, weights in enumerate(self._weights)
            for weight, stack in zip(weights, self.stacks, strict=True)
            for row in (stack.data[number],)
        )

    def score(self, given: Sequence[Given], own_numbers: Sequence[OwnNumbers]) -> list[Scores]:
        """Let every model read its rows; the gradients of the losses reach `stacks`.

        Shorter and fewer rows are padded.

        Raises:
            Unstackable: dropout is applied to something else than [B, T, ...].
        """
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


@dataclass(frozen=True)
class EnsembleMasks(DropoutMasks):
    """The dropout masks of the cells of all models.

    Attributes:
        parts: masks of each model, and the number of tokens that it reads.
    """

    parts: tuple[tuple[DropoutMasks, int], ...] = ()

    def block(self, num_steps: int) -> Tensor:
        """As in `DropoutMasks`; what is padding there drops nothing."""
        num_masks, mask_dim, num_all_rows = self.step_shape
        num_rows = num_all_rows // len(self.parts)
        shape = num_masks, num_steps, num_all_rows, mask_dim
        masks_NTBM = torch.ones(shape, dtype=self.dtype, device=self.device)
        of_parts = masks_NTBM.split(num_rows, dim=2)
        for own_NTBM, (part, num_tokens) in zip(of_parts, self.parts, strict=True):
            if (own_steps := min(num_steps, num_tokens - self.first_step)) > 0:
                drawn_NTBM = replace(part, first_step=self.first_step).block(own_steps)
                own_NTBM[:, :own_steps, : drawn_NTBM.shape[2]] = drawn_NTBM
        return masks_NTBM


class OwnMasks:
    """Draws dropout masks as each of the models would alone.

    Args:
        sizes: rows and tokens that each model reads.
        own_numbers: of each model.
    """

    def __init__(self, sizes: Sequence[tuple[int, ...]], own_numbers: Sequence[OwnNumbers]) -> None:
        self._sizes, self._own_numbers = sizes, own_numbers
        self._num_rows, self._num_tokens = (max(size) for size in zip(*sizes, strict=True))

    def of_cell(self, cell: Cell, inputs: Tensor) -> DropoutMasks | None:
        """As `DropoutMasks.draw`, for inputs [S B, T, E]."""
        parts = []
        for (rows, tokens), own_numbers in zip(self._sizes, self._own_numbers, strict=True):
            with own_numbers():
                masks = DropoutMasks.draw(cell, inputs[:rows])
            if masks is None:
                return None
            parts.append((masks, tokens))
        first = parts[0][0]
        num_masks, mask_dim, _ = first.step_shape
        shape = num_masks, mask_dim, len(inputs)
        return EnsembleMasks(
            0, first.probability, shape, first.dtype, first.device, parts=tuple(parts)
        )

    def of(self, like: Tensor, probability: float, times: Mapping[int, int]) -> Tensor:
        """Scaled masks for [S B, ...].

        Args:
            like: what they are for.
            probability: of dropping an element.
            times: the dimensions that are as long as the longest row, and for each the number of
                tokens that come before it.

        Raises:
            Unstackable: these dimensions have another length.
        """
        lengths = {dim: like.shape[dim] if dim < like.dim() else 0 for dim in times}
        wanted = {dim: past + self._num_tokens for dim, past in times.items()}
        if lengths != wanted or len(like) != self._num_rows * len(self._sizes):
            raise Unstackable(f"dropout of a tensor {list(like.shape)}, not [batch, tokens, ...]")
        masks = torch.ones_like(like)
        parts = zip(masks.split(self._num_rows), self._sizes, self._own_numbers, strict=True)
        for own, (rows, tokens), own_numbers in parts:
            place = [slice(rows)] + [slice(None)] * (like.dim() - 1)
            for dim, past in times.items():
                place[dim] = slice(past + tokens)
            ones = torch.ones_like(own[tuple(place)])
            with own_numbers():
                own[tuple(place)] = F.dropout(ones, probability)
        return masks


class OwnDropout(TorchFunctionMode):
    """Within it, dropout draws the masks that each of the models would draw alone."""

    def __init__(self, masks: OwnMasks) -> None:
        super().__init__()
        self._masks = masks

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace the functions of torch that drop something."""
        if func is F.dropout:
            return self._drop(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _drop(
        self, inputs: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return inputs
        return inputs * self._masks.of(inputs, p, {1: 0})

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> Tensor:
        if dropout_p == 0:
            return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal)
        scores = query @ key.mT / query.shape[-1] ** 0.5
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=key.device).tril()
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        weights = scores.softmax(-1)
        past = key.shape[2] - query.shape[2]
        return (weights * self._masks.of(weights, dropout_p, {2: 0, 3: past})) @ value
