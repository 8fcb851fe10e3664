"""Weights of 8 bits in an exported step, and what they cost.

Shapes: B batch, T time (tokens), V vocabulary.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from newllm.data.batching import EvaluationBatches
from newllm.data.source import VALIDATION, Source, Split
from newllm.exporting.onnx_step import OnnxStep
from newllm.models.language_model import score_logits

MOST_TARGETS = 20_000  # that are scored


def quantize(file: Path, target: Path) -> None:
    """Write a step whose matrices are int8, with a scale for each output.

    The inputs of a product are rounded to 8 bits as they come, with one scale for all rows of the
    batch.
    """
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends a step of its own for convolutions
    try:
        quantize_dynamic(
            file,
            target,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # 7 bits are used: sums of 8 overflow on processors without VNNI
        )
    finally:
        logger.setLevel(level)


def validation_batches(source: Source) -> Split:
    """The validation split of a source, or its first rows with at most `MOST_TARGETS` targets.

    Only the beginning is read of a document of a stream that has more.
    """
    encoded = source.encoded(VALIDATION)
    if encoded is None:
        return source.evaluation[VALIDATION]
    return EvaluationBatches(encoded.cut(MOST_TARGETS).head(MOST_TARGETS))


def mean_loss(step: OnnxStep, split: Split) -> tuple[float, int]:
    """The mean loss of a step on a split in nats per token, and the number of targets.

    No more batches are read than `MOST_TARGETS` targets need.

    Raises:
        ValueError: the rows of a batch continue those of the batch before.
    """
    total, num_targets = 0.0, 0
    for batch in split:
        if batch.reset_BT is not None:
            raise ValueError("--int8: its validation split resets the state, which no step does")
        state = step.initial_state(len(batch.tokens_BT))
        for t, token_B in enumerate(batch.tokens_BT.unbind(1)):
            logits_BV, state = step(token_B.numpy(), state)
            loss_BT, _ = score_logits(
                torch.from_numpy(logits_BV)[:, None], batch.targets_BT[:, t : t + 1]
            )
            total += float(loss_BT.double().sum())
        num_targets += int(batch.scored_BT.sum())
        if num_targets >= MOST_TARGETS:
            break
    return total / num_targets, num_targets
