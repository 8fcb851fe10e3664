"""A model from a description and weights that a stranger may have written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from newllm.config.build import checked
from newllm.config.trust import Trust
from newllm.data.tokenizer import BOS
from newllm.models.language_model import LanguageModel

SPARE = 1 << 24  # elements of tables, which follow from a model's sizes and are in no checkpoint
OVERHEAD = 4000  # elements that each tensor counts in addition, for the module around it


def load_model(
    node: DictConfig,
    weights: Mapping[str, Tensor],
    trust: Trust,
    largest: int,
    file: str = "checkpoints/best.ckpt",
) -> LanguageModel:
    """Build a model with weights, in evaluation mode.

    Args:
        node: the description of the model.
        weights: of a checkpoint, by name.
        trust: what may be built.
        largest: bytes of the checkpoint. No larger model is built.
        file: the checkpoint, for messages.

    Raises:
        ValueError: the node describes no model that can be built, has these weights and reads.
    """
    part = checked(node, "model", trust)
    try:
        with _limited(largest + SPARE, file), torch.device("meta"):  # sizes only, no memory
            sketch = part.build()
    except Exception as error:
        # A part of a package that the user trusts may need real tensors in its constructor.
        if isinstance(error, TooLarge) or not trust.packages:
            raise
    else:
        _load_weights(sketch, weights, file)
    with _limited(largest + SPARE, file):
        model = _load_weights(part.build(), weights, file).eval()
    with torch.no_grad():  # parts that can be built need not fit each other
        logits_BTV, _ = model(torch.tensor([[BOS]]))
    if logits_BTV.shape != (1, 1, model.vocabulary_size) or not logits_BTV.isfinite().all():
        raise ValueError("it describes a model without proper logits")
    return model


def _load_weights(model: Any, weights: Mapping[str, Tensor], file: str) -> LanguageModel:
    if not isinstance(model, LanguageModel):
        raise ValueError("it does not describe a language model")
    is_sketch = any(parameter.is_meta for parameter in model.parameters())
    try:
        model.load_state_dict(weights, assign=is_sketch)
    except RuntimeError as error:
        raise ValueError(f"it does not fit {file}: {error}") from error
    for name, _ in model.named_parameters():
        if not weights[name].isfinite().all():
            raise ValueError(f"{name} of {file} contains values that are not finite")
    return model


class TooLarge(ValueError):
    """A model needs more memory than it may."""


@contextlib.contextmanager
def _limited(num_elements: int, file: str) -> Iterator[None]:
    """Refuse to build modules with more elements than this in their parameters and buffers."""
    seen: dict[int, Tensor] = {}  # holds the tensors, so that no other gets the same id
    total = 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal total
        if tensor is None or id(tensor) in seen:
            return
        seen[id(tensor)] = tensor
        total += tensor.numel() + OVERHEAD
        if total > num_elements:
            raise TooLarge(f"it describes a model that is larger than {file}")

    handles = (
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
