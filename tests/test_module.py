"""Metrics against their definitions, clipping and schedules."""

import math

import pytest
import torch
from torch import Tensor

from newllm.data.batching import Batch, EncodedSplit
from newllm.data.tokenizer import BOS, EOS, PAD, UNK
from newllm.models.language_model import score_logits
from newllm.module import Schedule, SentenceScores

V = 7


def make_split(num_sentences: int) -> EncodedSplit:
    generator = torch.Generator().manual_seed(0)
    sentences = []
    for length in torch.randint(1, 6, (num_sentences,), generator=generator).tolist():
        words = torch.randint(UNK, V, (length,), generator=generator)
        words[words == BOS] = UNK
        sentences.append([BOS, *words.tolist(), EOS])
    return EncodedSplit(sentences)


def logits_of(batch: Batch) -> Tensor:
    """Logits that depend on the token and its position alone, so that batching cannot matter."""
    table = torch.randn(V, 8, V, generator=torch.Generator().manual_seed(1))
    return table[batch.tokens_BT, torch.arange(batch.tokens_BT.shape[1])]


def test_metrics_are_their_definitions_whatever_the_batching() -> None:
    split = make_split(35)
    losses, known, correct = [], [], []
    by_sentence = []
    for i in range(len(split)):
        batch = split.batch(torch.tensor([i]))
        log_p = logits_of(batch).log_softmax(-1)[0]
        targets = batch.targets_BT[0]
        token = -log_p[torch.arange(len(targets)), targets]
        losses += token.tolist()
        known += token[targets != UNK].tolist()
        correct += (log_p.argmax(-1) == targets).tolist()
        by_sentence.append(token)
    groups = [torch.cat(by_sentence[i : i + 16]).mean().item() for i in range(0, 35, 16)]

    scores = SentenceScores()
    for sentence_B in torch.randperm(35, generator=torch.Generator().manual_seed(2)).split(6):
        batch = split.batch(sentence_B)
        logits_BTV = logits_of(batch)
        scores.add(*score_logits(logits_BTV, batch.targets_BT), batch)
    metrics = scores.metrics()
    assert metrics["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert metrics["loss_known"] == pytest.approx(sum(known) / len(known), rel=1e-6)
    assert metrics["loss_batch_mean"] == pytest.approx(sum(groups) / len(groups), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-6)
    assert metrics["accuracy"] == sum(correct) / len(correct)
    assert len(known) < len(losses), "the test needs unknown targets"


def test_token_losses_are_zero_at_padding() -> None:
    targets_BT = torch.tensor([[4, PAD], [5, 6]])
    losses_BT, _ = score_logits(torch.randn(2, 2, V), targets_BT)
    assert losses_BT[0, 1] == 0
    assert (losses_BT[targets_BT != PAD] > 0).all()


def test_schedule_refuses_an_unknown_interval() -> None:
    with pytest.raises(ValueError, match=r"schedule\.interval=batch"):
        Schedule("batch", lambda optimizer: None)
