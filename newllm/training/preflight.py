"""Checks of a model and its data before the first step.

A model that sees the future is refused, unless it declares so (`transformer_leaky`). Everything
else is a warning.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from newllm.config.build import ConfigFault
from newllm.data.batch import device_of
from newllm.data.source import VALIDATION, Source
from newllm.data.tokenizer import BOS, PAD, UNK
from newllm.models.language_model import LanguageModel
from newllm.models.recurrence.reference import Reference
from newllm.models.sizes import Budget

# Thresholds of the warnings.
MANY_UNKNOWN = 0.05
MUCH_OVERLAP = 0.01
MANY_UNUSED = 0.1
FEW_STEPS = 200
MAX_ROWS, MAX_POSITIONS = 4, 128  # to search for a leak
TOLERANCE = 1e-9  # relative, in float64; reordered sums differ by less


@dataclass(frozen=True)
class Preflight:
    """The findings.

    Attributes:
        causal: whether no later token changes an earlier logit.
        num_classes: outputs of the model.
        num_steps: optimizer steps planned.
        missed_budget: a line for each budget that the model exceeds or falls short of.
        unknown_share: share of `<UNK>` among the validation targets.
        unknown_in_train: whether `<UNK>` is also a training target.
        overlap_share: share of the validation sequences that are also in train.
        num_too_long: sequences that were cut or dropped for their length.
        num_unused_classes: outputs that are never a training target.
        unit: what the sequences are.
    """

    causal: bool
    num_classes: int
    num_steps: int
    missed_budget: tuple[str, ...] = ()
    unknown_share: float = 0.0
    unknown_in_train: bool = False
    overlap_share: float = 0.0
    num_too_long: int = 0
    num_unused_classes: int = 0
    unit: str = "sequences"

    def as_result(self) -> dict[str, Any]:
        """The findings by name, with the warnings."""
        return asdict(self) | {"warnings": list(self.warnings())}

    def warnings(self) -> Iterator[str]:
        """A line for each finding that matters for the losses."""
        if not self.causal:
            yield (
                "sees the future: it has no causal mask (a fault of the published baseline); "
                "its losses are not language-model losses"
            )
        if self.unknown_share > MANY_UNKNOWN:
            never = "" if self.unknown_in_train else ", which never occur in training"
            yield (
                f"{self.unknown_share:.0%} of the validation targets are <UNK>{never}: "
                "see val/loss_known"
            )
        if self.overlap_share > MUCH_OVERLAP:
            yield f"{self.overlap_share:.0%} of the validation {self.unit} are also in train"
        if self.num_too_long:
            yield f"{self.num_too_long:,} {self.unit} were too long and were truncated or dropped"
        if self.num_unused_classes > MANY_UNUSED * self.num_classes:
            yield (
                f"{self.num_unused_classes:,} of {self.num_classes:,} output classes are never a "
                "training target"
            )
        if self.num_steps < FEW_STEPS:
            yield f"only {self.num_steps:,} optimizer steps are planned"
        yield from self.missed_budget


def check(
    model: LanguageModel, source: Source, num_steps: int, budget: Budget | None = None
) -> Preflight:
    """Check a model and its data.

    Raises:
        ConfigFault: the model sees the future and does not declare so.
    """
    leak = find_leak(model, _some_tokens(source))
    if leak and not model.sees_the_future:
        raise ConfigFault(
            [f"{model.description} sees the future: {leak}; fix it, since it would learn to copy"]
        )
    of_sequences: dict[str, Any] = {}
    train, validation = source.encoded("train"), source.encoded(VALIDATION)
    if train is not None and validation is not None:
        train_ids = train.different_ids
        of_sequences = {
            "unknown_share": float((validation.targets == UNK).float().mean()),
            "unknown_in_train": UNK in train_ids,
            "num_unused_classes": model.vocabulary_size - len(train_ids | {PAD, BOS, UNK}),
        }
    return Preflight(
        causal=leak is None,
        num_classes=model.vocabulary_size,
        num_steps=num_steps,
        missed_budget=tuple(budget.misses(model)) if budget else (),
        overlap_share=source.overlap_share,
        num_too_long=sum(source.num_incomplete().values()),
        unit=source.unit,
        **of_sequences,
    )


def _some_tokens(source: Source) -> Tensor:
    """Beginnings of some validation rows, the longest ones if they are known [B, T]."""
    split = source.encoded(VALIDATION)
    if split is None:
        return source.evaluation[VALIDATION].batch(0, 0).tokens_BT[:MAX_ROWS, :MAX_POSITIONS]
    longest_B = split.num_positions_N.argsort(descending=True)[:MAX_ROWS].tolist()
    beginnings = [split[i][:-1][:MAX_POSITIONS] for i in longest_B]
    return pad_sequence(beginnings, batch_first=True, padding_value=PAD)


@torch.no_grad()
def find_leak(model: LanguageModel, tokens_BT: Tensor) -> str | None:
    """Which later token changes which earlier logit; None if none does.

    Computed on a copy in float64, because float32 could hide a leak in the small logits of fresh
    weights.
    """
    model = copy.deepcopy(model).double().eval()
    for layer in model.recurrent_layers:
        layer.recurrence = Reference()  # native code for float64 would be compiled for this alone
    tokens_BT = tokens_BT.to(device_of(model))
    logits_BTV = model(tokens_BT)[0]
    length = tokens_BT.shape[1]
    span = max(1, model.vocabulary_size - UNK - 1)
    for first_changed in sorted({1, length // 2, length - 1} - {0}):
        changed_BT = tokens_BT.clone()
        later_BT = changed_BT[:, first_changed:]
        # Replace each token by another real one.
        later_BT[later_BT != PAD] = (later_BT[later_BT != PAD] * 7 + 3) % span + UNK + 1
        change_BTV = (model(changed_BT)[0] - logits_BTV)[:, :first_changed].abs()
        change_T = change_BTV.amax((0, 2))
        if (change_T > TOLERANCE * logits_BTV.abs().max()).any():
            earliest = int((change_T > 0).nonzero()[0])
            return f"tokens from position {first_changed} on change its logits at {earliest}"
    return None
