"""What is checked before the first step: whether the losses of a run will mean anything.

A model that sees the future does not train, unless it says so itself (`transformer_leaky`).
Everything else is a warning with its number.
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
from newllm.data.sources.sentences import SentenceSource
from newllm.data.tokenizer import BOS, PAD, UNK
from newllm.models.language_model import LanguageModel
from newllm.models.recurrence.reference import Reference
from newllm.models.sizes import Budget

# From where on a warning is worth a line.
MANY_UNKNOWN = 0.05
MUCH_OVERLAP = 0.01
MANY_UNUSED = 0.1
FEW_STEPS = 200
MAX_ROWS, MAX_POSITIONS = 4, 128  # in which a leak is looked for
TOLERANCE = 1e-9  # of the largest logit, in float64; another order of the same sums changes less


@dataclass(frozen=True)
class Preflight:
    """The findings.

    Attributes:
        causal: whether no future token changes an earlier logit.
        num_classes: all outputs.
        num_steps: optimizer steps planned.
        missed_budget: a line for each budget that the model does not keep.
        unknown_share: `<UNK>` among the validation targets.
        unknown_in_train: whether it is a training target as well.
        overlap_share: validation sentences that are in train as well.
        num_too_long: sentences that were cut or dropped for their length.
        num_unused_classes: outputs that are never a training target, as far as that is known.
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

    def as_result(self) -> dict[str, Any]:
        """All findings by name, and the warnings."""
        return asdict(self) | {"warnings": list(self.warnings())}

    def warnings(self) -> Iterator[str]:
        """A line for each finding that a reader of the losses should know of."""
        if not self.causal:
            yield (
                "sees the future: it has no causal mask (a fault of the published baseline); "
                "its losses are not language-model losses"
            )
        if self.unknown_share > MANY_UNKNOWN:
            yield (
                f"{self.unknown_share:.0%} of the validation targets are <UNK>"
                + (", which never occur in training" if not self.unknown_in_train else "")
                + ": see val/loss_known"
            )
        if self.overlap_share > MUCH_OVERLAP:
            yield f"{self.overlap_share:.0%} of the validation sentences are also in train"
        if self.num_too_long:
            yield f"{self.num_too_long:,} sentences were too long and were truncated or dropped"
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
        ConfigFault: the model sees the future and does not say so.
    """
    leak = find_leak(model, _some_tokens(source))
    if leak and not model.sees_the_future:
        raise ConfigFault(
            [
                f"{model.description} sees the future: {leak}; fix the model, "
                "which would learn to copy its targets"
            ]
        )
    return Preflight(
        causal=leak is None,
        num_classes=model.vocabulary_size,
        num_steps=num_steps,
        missed_budget=tuple(budget.misses(model)) if budget else (),
        **(_of_sentences(model, source) if isinstance(source, SentenceSource) else {}),
    )


def _of_sentences(model: LanguageModel, source: SentenceSource) -> dict[str, Any]:
    card, train_ids = source.card, source.split("train").different_ids
    return {
        "unknown_share": card.unknown_share,
        "unknown_in_train": UNK in train_ids,
        "overlap_share": card.overlap_share,
        "num_too_long": sum(source.num_too_long.values()),
        "num_unused_classes": model.vocabulary_size - len(train_ids | {PAD, BOS, UNK}),
    }


def _some_tokens(source: Source) -> Tensor:
    """Beginnings of validation rows, of sentences the longest [B, T]."""
    if not isinstance(source, SentenceSource):
        return source.evaluation[VALIDATION].batch(0, 0).tokens_BT[:MAX_ROWS, :MAX_POSITIONS]
    split = source.split(VALIDATION)
    longest_B = split.num_positions_N.argsort(descending=True)[:MAX_ROWS].tolist()
    beginnings = [split[i][:-1][:MAX_POSITIONS] for i in longest_B]
    return pad_sequence(beginnings, batch_first=True, padding_value=PAD)


@torch.no_grad()
def find_leak(model: LanguageModel, tokens_BT: Tensor) -> str | None:
    """Which later token changes which earlier logit; None if none does.

    A copy in float64 is asked: fresh weights may give logits so small that float32 hides it.
    """
    model = copy.deepcopy(model).double().eval()
    for layer in model.recurrent_layers:
        layer.recurrence = Reference()  # Machine code for float64 would be compiled for this alone.
    tokens_BT = tokens_BT.to(device_of(model))
    logits_BTV = model(tokens_BT)[0]
    length, leak = tokens_BT.shape[1], None
    for first_changed in sorted({1, length // 2, length - 1} - {0}):
        changed_BT = tokens_BT.clone()
        later_BT = changed_BT[:, first_changed:]
        # Another real token in the place of each, the same every time.
        span = max(1, model.vocabulary_size - UNK - 1)
        later_BT[later_BT != PAD] = (later_BT[later_BT != PAD] * 7 + 3) % span + UNK + 1
        before = slice(0, first_changed)
        difference_T = (model(changed_BT)[0] - logits_BTV)[:, before].abs().amax((0, 2))
        if (difference_T > TOLERANCE * logits_BTV.abs().max()).any():
            earliest = int((difference_T > 0).nonzero()[0])
            leak = f"tokens from position {first_changed} on change its logits at {earliest}"
            break
    return leak
