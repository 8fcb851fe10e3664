"""The data card of a corpus: the figures that a loss on it is judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from newllm.data.sources.corpora import SPLITS

if TYPE_CHECKING:
    from newllm.data.sources.corpus_source import CorpusSource


def card(data: CorpusSource) -> dict[str, str]:
    """The card of a source that is set up, as labels and values."""
    counts, number = data.counts, data.num_sentences
    mean = counts.num_words / (number["train"] + number["validation"])
    overlap_share = counts.overlap / number["validation"]
    rows = {
        data.unit: " / ".join(f"{number[split]:,} {split}" for split in SPLITS),
        "words": f"{counts.num_words:,}",
        "unique words": f"{counts.num_unique_words:,}",
        "vocabulary": f"{data.vocabulary_size:,} (train, with 4 specials)",
        "<UNK> in validation": f"{data.num_unknown:,} of {data.encoded('validation').num_targets:,}"
        f" targets ({data.unknown_share:.1%})",
        f"words a {data.unit.removesuffix('s')}": f"{counts.shortest} to {counts.longest}, "
        f"mean {mean:.2f}",
        "too long": data.too_long() or "none",
        "blank lines": f"{counts.num_blank_lines:,}",
        "validation also in train": f"{counts.overlap:,} {data.unit} ({overlap_share:.1%})",
    }
    if data.tokenizer.is_exact:
        rows["bytes"] = " / ".join(f"{data.num_bytes(split):,} {split}" for split in SPLITS)
    return rows | {"sha256": str(data.digest)}
