"""Corpora of sentences that were drawn from a grammar, whose probabilities are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from newllm.config.faults import no_such_option, too_small
from newllm.data.sources.corpora import BUILT_IN, Corpus, build_corpus
from newllm.data.sources.corpus_source import CorpusSource
from newllm.data.sources.grammar import Grammar
from newllm.data.sources.grammar_memory import context_information, window_losses
from newllm.data.sources.oracle import distributions, word_losses
from newllm.data.tokenizer import UNK

NUM_WINDOWS = 3  # whose losses a card shows


class SentenceSource(CorpusSource):
    """A corpus of this package, with the losses of the grammar that drew it, if there is one.

    Args:
        corpus: one of `BUILT_IN`.
        seed: redraws and splits the corpus anew. None gives the published corpus.
        settings: of `CorpusSource`.
    """

    def __init__(self, corpus: str, seed: int | None = None, **settings: Any) -> None:
        faults = no_such_option("data", BUILT_IN, corpus=corpus) + too_small("data", 0, seed=seed)
        super().__init__(corpus, "sentences", True, faults, **settings)
        self._seed = seed
        self._oracle_losses: dict[str, float | None] = {}

    def read(self) -> Corpus:
        """Build the corpus."""
        return build_corpus(self.name, self._seed)

    def text_settings(self) -> dict[str, Any]:
        """The corpus and its seed."""
        return {"corpus": self.name, "seed": self._seed}

    def write(self) -> None:
        """Write the splits to files.

        Raises:
            ValueError: they cannot be written.
        """
        if self._directory:
            self._whole.write(self._directory)

    @property
    def grammar(self) -> Grammar | None:
        """The distribution that the sentences were drawn from, if there is one."""
        return self._whole.grammar

    def oracle_loss(self, split: str) -> float | None:
        """The mean -log p of a split's targets under the grammar, in nats per token.

        On a finite split it scatters around `entropy_floor`. On the test split,
        `Corpus.test_shift` could still be gained. None as for `grammar_losses`.
        """
        if split not in self._oracle_losses:
            losses = self.grammar_losses(split)
            self._oracle_losses[split] = (
                None if losses is None else math.fsum(losses) / self._splits[split].num_targets
            )
        return self._oracle_losses[split]

    def grammar_losses(self, name: str, grammar: Grammar | None = None) -> list[float] | None:
        """The loss of each word and sentence end of a split under a grammar, in nats.

        These are the targets of the split, unless tokens are parts of words.

        Args:
            name: of the split.
            grammar: None for that of the corpus.

        Returns:
            None without a grammar, for an empty split, and for one whose sentences are truncated or
            cut into several rows.
        """
        grammar, split = grammar or self.grammar, self._splits[name]
        is_truncated = self._too_long == "truncate" and self.num_too_long[name] > 0
        if grammar is None or not len(split) or is_truncated or not split.rows_are_sequences:
            return None
        unknown_in = split if self._tokenizer_kind == "words" else None
        return word_losses(grammar, self.tokenizer, self.sentences(name), unknown_in)

    def reference_losses(self, split: str) -> Mapping[str, np.ndarray]:
        """Of a corpus drawn from a grammar.

        `grammar_known` is the grammar with probabilities estimated from the training sentences, the
        loss of a perfect learner of its structure; `oracle` is the grammar itself.
        """
        if self._estimated is None:
            return {}
        found = {
            "grammar_known": self.grammar_losses(split, self._estimated),
            "oracle": self.grammar_losses(split),
        }
        num_targets = self._splits[split].num_targets
        return {
            name: np.array(losses)
            if len(losses) == num_targets
            else np.full(num_targets, math.fsum(losses) / num_targets)  # tokens are parts of words
            for name, losses in found.items()
            if losses is not None
        }

    @cached_property
    def _estimated(self) -> Grammar | None:
        return self.grammar and self.grammar.estimate(
            sentence.split() for sentence in self.sentences("train")
        )

    def next_token_distributions(self, split: str) -> list[list[dict[int, float]]] | None:
        """The grammar's probability of each next token, by sentence and position.

        None without a grammar, for an empty split, and where tokens are parts of words or rows are
        parts of sentences.
        """
        grammar, encoded = self.grammar, self._splits[split]
        if grammar is None or self._tokenizer_kind != "words" or not len(encoded):
            return None
        if not encoded.rows_are_sequences:
            return None
        return distributions(grammar, self.tokenizer, self.sentences(split), encoded)

    @property
    def entropy_floor(self) -> float | None:
        """The expectation of `oracle_loss`: the entropy of the grammar in nats per token.

        None without a grammar, and where the splits do not follow it: with parts of words, `<UNK>`
        or a limit to their length.
        """
        is_changed = self._tokenizer_kind != "words" or any(self.num_too_long.values())
        if self.grammar is None or is_changed:
            return None
        splits = self._splits.values()
        if any(UNK in each.different_ids or not each.rows_are_sequences for each in splits):
            return None
        return self.grammar.entropy_per_token()

    def grammar_card(self) -> dict[str, str]:
        """What the grammar says of the corpus, as labels and values; empty without one."""
        if self.grammar is None:
            return {}
        rows: dict[str, str] = {}
        floor = self.entropy_floor
        rows["entropy"] = f"{self.grammar.entropy():.3f} nats per sentence" + (
            f", {floor:.4f} per token" if floor else ""
        )
        windows = ", ".join(f"{loss:.4f}" for loss in window_losses(self.grammar, NUM_WINDOWS))
        rows["best windows"] = f"{windows} nats per token, for 1 to {NUM_WINDOWS} tokens"
        bits = context_information(self.grammar) / math.log(2)
        rows["information"] = f"{bits:.2f} bits of what precedes a token about what follows it"
        for split in ("validation", "test"):
            if loss := self.oracle_loss(split):
                rows[f"oracle, {split}"] = f"{loss:.4f} nats per token"
        if num_targets := self.encoded("test").num_targets:
            shift = -self.corpus.test_shift * len(self.corpus.test) / num_targets
            rows["test shift"] = f"{shift:.1e} nats per token, for knowing what test leaves out"
        return rows
