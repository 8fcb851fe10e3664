"""The losses and next-token distributions of a model that knows the grammar of a corpus.

A word outside the vocabulary counts as `<UNK>`, whose probability is that of all such words.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from newllm.data.encoded import EncodedSplit
from newllm.data.sources.grammar import END, Grammar
from newllm.data.tokenizer import EOS, UNK, Tokenizer


def word_losses(
    grammar: Grammar,
    tokenizer: Tokenizer,
    sentences: Iterable[str],
    split: EncodedSplit | None,
) -> list[float]:
    """-log p of each word and each end of some sentences, in nats.

    Args:
        split: the encoded sentences if tokens are whole words, to find `<UNK>` in.
    """
    losses: list[float] = []
    token_of = _translation(tokenizer)
    for index, sentence in enumerate(sentences):
        words = sentence.split()
        log_probabilities = grammar.token_log_probabilities(words)
        unknown = [] if split is None else (split[index][1:] == UNK).nonzero()[:, 0].tolist()
        for position in unknown:
            following = _next_tokens(grammar, words[:position], token_of)
            log_probabilities[position] = math.log(following[UNK])
        losses += (-x for x in log_probabilities)
    return losses


def distributions(
    grammar: Grammar, tokenizer: Tokenizer, sentences: Iterable[str], split: EncodedSplit
) -> list[list[dict[int, float]]]:
    """The probability of each token that can follow, by sentence and position."""
    token_of = _translation(tokenizer)
    return [
        [
            _next_tokens(grammar, sentence.split()[:position], token_of)
            for position in range(int(split.num_positions_N[index]))
        ]
        for index, sentence in enumerate(sentences)
    ]


def _translation(tokenizer: Tokenizer) -> Callable[[str], int]:
    return cache(lambda word: EOS if word == END else tokenizer.encode(word)[1])


def _next_tokens(
    grammar: Grammar, prefix: Sequence[str], token_of: Callable[[str], int]
) -> dict[int, float]:
    following: dict[int, float] = defaultdict(float)
    for word, p in grammar.next_token_distribution(prefix).items():
        following[token_of(word)] += p
    return dict(following)
