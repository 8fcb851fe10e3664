"""Losses and divergences of a model on a split, target by target."""

from __future__ import annotations

import numpy as np
import torch

from newllm.data.batch import on_device_of
from newllm.data.batching import EvaluationBatches
from newllm.data.encoded import EncodedSplit
from newllm.data.sources.sentences import SentenceSource
from newllm.models.language_model import LanguageModel


@torch.no_grad()
def target_losses(model: LanguageModel, split: EncodedSplit) -> np.ndarray:
    """Cross-entropy of every target in nats, in the order of the split."""
    losses = np.empty(split.num_targets)
    for batch in on_device_of(model, EvaluationBatches(split)):
        loss_BT, _, _ = model.score(batch.tokens_BT, batch.targets_BT)
        losses[split.target_indices(batch)] = loss_BT[batch.scored_BT].double().numpy(force=True)
    return losses


@torch.no_grad()
def divergences(
    model: LanguageModel, data: SentenceSource, split: str = "validation"
) -> np.ndarray | None:
    """KL divergence from the grammar's exact next-token distribution to the model's, in nats.

    One for each target, in the order of the split; None where no exact distribution is known. Their
    mean is the expected excess of the model's loss over the oracle's, free of the sampling noise of
    the split.
    """
    exact = data.next_token_distributions(split)
    if exact is None:
        return None
    by_sentence: list[np.ndarray] = [np.empty(0)] * len(exact)
    for batch in on_device_of(model, EvaluationBatches(data.split(split))):
        log_BTV = model(batch.tokens_BT)[0].double().log_softmax(-1).numpy(force=True)
        for row, sentence in enumerate(batch.row_B.tolist()):
            by_sentence[sentence] = np.array(
                [
                    sum(p * (np.log(p) - log_V[token]) for token, p in following.items())
                    for following, log_V in zip(exact[sentence], log_BTV[row], strict=False)
                ]
            )
    return np.concatenate(by_sentence)
