"""The data card: the figures that a loss on a corpus is judged by."""

from __future__ import annotations

import math

from newllm.data.sources.corpora import SPLITS
from newllm.data.sources.grammar_memory import context_information, window_losses
from newllm.data.sources.sentences import SentenceSource

NUM_WINDOWS = 3  # whose losses a card shows


def card(data: SentenceSource) -> dict[str, str]:
    """The card of a source that is set up, as labels and values."""
    counts, number = data.counts, data.num_sentences
    mean = counts.num_words / (number["train"] + number["validation"])
    overlap_share = counts.overlap / number["validation"]
    rows = {
        "sentences": " / ".join(f"{number[split]:,} {split}" for split in SPLITS),
        "words": f"{counts.num_words:,}",
        "unique words": f"{counts.num_unique_words:,}",
        "vocabulary": f"{data.vocabulary_size:,} (train, with 4 specials)",
        "<UNK> in validation": f"{data.num_unknown:,} of {data.split('validation').num_targets:,}"
        f" targets ({data.unknown_share:.1%})",
        "words a sentence": f"{counts.shortest} to {counts.longest}, mean {mean:.2f}",
        "too long": data.too_long() or "none",
        "blank lines": f"{counts.num_blank_lines:,}",
        "validation also in train": f"{counts.overlap:,} sentences ({overlap_share:.1%})",
    }
    if data.grammar:
        floor = data.entropy_floor
        rows["entropy"] = f"{data.grammar.entropy():.3f} nats per sentence" + (
            f", {floor:.4f} per token" if floor else ""
        )
        windows = ", ".join(f"{loss:.4f}" for loss in window_losses(data.grammar, NUM_WINDOWS))
        rows["best windows"] = f"{windows} nats per token, for 1 to {NUM_WINDOWS} tokens"
        bits = context_information(data.grammar) / math.log(2)
        rows["information"] = f"{bits:.2f} bits of what precedes a token about what follows it"
        for split in ("validation", "test"):
            if loss := data.oracle_loss(split):
                rows[f"oracle, {split}"] = f"{loss:.4f} nats per token"
        if num_targets := data.split("test").num_targets:
            shift = -data.corpus.test_shift * len(data.corpus.test) / num_targets
            rows["test shift"] = f"{shift:.1e} nats per token, for knowing what test leaves out"
    return rows | {"sha256": str(data.digest)}
