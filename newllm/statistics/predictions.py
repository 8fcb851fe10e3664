"""Losses and divergences of a model on a split, target by target."""

from __future__ import annotations

import numpy as np
import torch

from newllm.data.batch import on_device_of
from newllm.data.batching import EvaluationBatches
from newllm.data.encoded import EncodedSplit
from newllm.data.source import Source
from newllm.data.streaming import evaluation_batches
from newllm.models.language_model import LanguageModel
from newllm.statistics.intervals import ratio_interval
from newllm.statistics.scoring import score_batches


def target_losses(model: LanguageModel, split: EncodedSplit) -> np.ndarray:
    """Cross-entropy of every target in nats, in the order of the split."""
    losses = np.empty(split.num_targets)
    batches = evaluation_batches(split, in_windows=not model.sees_the_future)
    for number, scored in enumerate(score_batches(model, batches)):
        loss_S = scored.loss_BT[scored.batch.scored_BT]
        losses[batches.target_indices(number)] = loss_S.double().numpy(force=True)
    return losses


def bits_per_byte(losses: np.ndarray, source: Source, split: str) -> dict[str, float | None] | None:
    """The loss of a split in bits per byte of its text, with its 95 % interval over sequences.

    Args:
        losses: of every target in nats, in the order of the split.
        source: that the split belongs to.
        split: its name.

    Returns:
        `value`, `half_width` (None for one sequence) and `num_sequences`; None if tokens do not
        stand for bytes.
    """
    encoded = source.encoded(split)
    bytes_V = None if source.tokenizer is None else source.tokenizer.bytes_V
    if encoded is None or bytes_V is None:
        return None
    sequence_S = np.repeat(encoded.sequence_N.numpy(), encoded.num_targets_N.numpy())
    bits_D = np.bincount(sequence_S, losses / np.log(2))
    bytes_D = np.bincount(sequence_S, bytes_V[encoded.targets])
    value, half_width = ratio_interval(bits_D, bytes_D)
    return {
        "value": value,
        "half_width": half_width if np.isfinite(half_width) else None,
        "num_sequences": encoded.num_sequences,
    }


@torch.no_grad()
def divergences(
    model: LanguageModel, source: Source, split: str = "validation"
) -> np.ndarray | None:
    """KL divergence from the grammar's exact next-token distribution to the model's, in nats.

    One for each target, in the order of the split; None where no exact distribution is known. Their
    mean is the expected excess of the model's loss over the oracle's, free of the sampling noise of
    the split.
    """
    exact, encoded = source.next_token_distributions(split), source.encoded(split)
    if exact is None or encoded is None:
        return None
    by_sentence: list[np.ndarray] = [np.empty(0)] * len(exact)
    for batch in on_device_of(model, EvaluationBatches(encoded)):
        log_BTV = model(batch.tokens_BT)[0].double().log_softmax(-1).numpy(force=True)
        for row, sentence in enumerate(batch.row_B.tolist()):
            by_sentence[sentence] = np.array(
                [
                    sum(p * (np.log(p) - log_V[token]) for token, p in following.items())
                    for following, log_V in zip(exact[sentence], log_BTV[row], strict=False)
                ]
            )
    return np.concatenate(by_sentence)
