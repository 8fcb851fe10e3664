"""How many optimizer steps a number of tokens is."""

from __future__ import annotations

from newllm.data.source import Source, Split

NUM_SAMPLES = 32  # batches whose tokens are counted


def steps_of_tokens(num_tokens: float, source: Source, batches_per_step: float) -> int:
    """The optimizer steps that train on about `num_tokens` scored targets, at least one.

    Scored targets are what the column `tokens` of `metrics.csv` counts. Batches hold different
    numbers of them: their mean is exact for encoded sequences, and else taken from batches that are
    spread over the epoch or, without epochs, over the run.

    Args:
        num_tokens: of the whole run.
        source: a source that is set up.
        batches_per_step: accumulated in a step, on average.
    """
    split, encoded = source.train, source.encoded("train")
    if split.num_batches is None:
        # A curriculum may lengthen the rows, so how far it gets matters.
        num_batches = round(num_tokens / _mean_targets(split, NUM_SAMPLES))
        mean = _mean_targets(split, max(1, num_batches))
    elif encoded is not None:
        mean = encoded.num_targets / split.num_batches
    else:
        mean = _mean_targets(split, split.num_batches)
    return max(1, round(num_tokens / (mean * batches_per_step)))


def _mean_targets(split: Split, num_batches: int) -> float:
    """The mean number of scored targets in the first batches, from a sample of them."""
    num_samples = min(NUM_SAMPLES, num_batches)
    numbers = [(2 * i + 1) * num_batches // (2 * num_samples) for i in range(num_samples)]
    counts = [int(split.batch(0, number).scored_BT.sum()) for number in numbers]
    return max(1.0, sum(counts) / num_samples)
