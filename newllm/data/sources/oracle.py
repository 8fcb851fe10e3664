"""What a grammar says of encoded sentences: the losses and distributions of a perfect model."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from newllm.data.encoded import EncodedSplit
from newllm.data.sources.grammar import END, Grammar
from newllm.data.tokenizer import EOS, UNK, Tokenizer


class Oracle(NamedTuple):
    """A grammar, and the tokenizer that encodes its sentences.

    A word that the vocabulary does not hold counts as `<UNK>`: any of the words that read so.

    Attributes:
        reads_words: whether tokens are whole words; `distributions` needs them to be.
    """

    grammar: Grammar
    tokenizer: Tokenizer
    reads_words: bool

    def losses(self, sentences: Iterable[str], split: EncodedSplit) -> list[float]:
        """-log p of each word and each end of the sentences of a split, in nats.

        These are the targets of the split, unless tokens are parts of words.
        """
        losses: list[float] = []
        for index, sentence in enumerate(sentences):
            words = sentence.split()
            log_probabilities = self.grammar.token_log_probabilities(words)
            if self.reads_words:
                for position in (split[index][1:] == UNK).nonzero()[:, 0].tolist():
                    following = self.grammar.next_token_distribution(words[:position])
                    unknown = sum(p for word, p in following.items() if self._token(word) == UNK)
                    log_probabilities[position] = math.log(unknown)
            losses += (-x for x in log_probabilities)
        return losses

    def distributions(
        self, sentences: Iterable[str], split: EncodedSplit
    ) -> list[list[dict[int, float]]]:
        """The probability of each token that can follow, by sentence and position."""
        assert self.reads_words
        tokens: dict[str, int] = {}
        found = []
        for index, sentence in enumerate(sentences):
            words = sentence.split()
            of_sentence = []
            for position in range(int(split.num_positions_N[index])):
                following: dict[int, float] = defaultdict(float)
                for word, p in self.grammar.next_token_distribution(words[:position]).items():
                    if word not in tokens:
                        tokens[word] = self._token(word)
                    following[tokens[word]] += p
                of_sentence.append(dict(following))
            found.append(of_sentence)
        return found

    def _token(self, word: str) -> int:
        return EOS if word == END else self.tokenizer.encode(word)[1]
