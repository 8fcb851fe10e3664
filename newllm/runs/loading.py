"""A model from a description and weights that a stranger may have written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from newllm.config.build import checked
from newllm.config.trust import Trust
from newllm.data.tokenizer import BOS
from newllm.models.language_model import LanguageModel
from newllm.runs.files import misfit

# Beside the weights of a checkpoint a model may hold tables that follow from its sizes.
SPARE = 1 << 24  # elements
OVERHEAD = 4000  # elements that each tensor counts more, for the module around it


def load_model(
    node: DictConfig, weights: Mapping[str, Tensor], trust: Trust, largest: int
) -> LanguageModel:
    """Build a model with weights, in evaluation mode.

    Args:
        node: what describes it.
        weights: of a checkpoint, by name.
        trust: what may be built.
        largest: bytes of the checkpoint: no larger model is built.

    Raises:
        ValueError: the node describes no model that can be built, has these weights and reads.
    """
    part = checked(node, "model", trust)
    with at_most(largest + SPARE):
        try:
            with torch.device("meta"):  # sizes only, no memory
                sketch = part.build()
        except Exception as error:
            # Only what the user trusts may be unable to live without memory.
            if isinstance(error, TooLarge) or not trust.packages:
                raise
        else:
            _check(sketch, weights)
    with at_most(largest + SPARE):
        model = part.build()
    _check(model, weights)
    model.load_state_dict(weights)
    model.eval()
    _try(model)
    assert isinstance(model, LanguageModel)
    return model


def _check(model: Any, weights: Mapping[str, Tensor]) -> None:
    if not isinstance(model, LanguageModel):
        raise ValueError("it does not describe a language model")
    if fault := misfit(model.state_dict(), weights):
        raise ValueError(f"it does not fit checkpoints/best.ckpt: {fault}")
    for name, _ in model.named_parameters():
        if not bool(weights[name].isfinite().all()):
            raise ValueError(f"{name} of checkpoints/best.ckpt contains values that are not finite")


@torch.no_grad()
def _try(model: LanguageModel) -> None:
    """Let it read one token: parts that can be built need not fit each other."""
    logits_BTV, _ = model(torch.tensor([[BOS]]))
    if logits_BTV.shape != (1, 1, model.vocabulary_size) or not bool(logits_BTV.isfinite().all()):
        raise ValueError("it describes a model whose output is not logits")


class TooLarge(ValueError):
    """A model would need more memory than it may."""


@contextlib.contextmanager
def at_most(num_elements: int) -> Iterator[None]:
    """Refuse modules with more elements than so many, before any of them is filled in."""
    seen: dict[int, Tensor] = {}  # the tensors are kept, so that no other gets the same number
    count = _counter(seen, num_elements)
    handles = (
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counter(
    seen: dict[int, Tensor], num_elements: int
) -> Callable[[nn.Module, str, Tensor | None], None]:
    total = 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal total
        if tensor is None or id(tensor) in seen:
            return
        seen[id(tensor)] = tensor
        total += tensor.numel() + OVERHEAD
        if total > num_elements:
            raise TooLarge("it describes a model that is larger than checkpoints/best.ckpt")

    return count
