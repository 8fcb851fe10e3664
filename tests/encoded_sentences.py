"""Encoded splits of sentences that are given as lists of token ids."""

from collections.abc import Sequence
from itertools import chain

import numpy as np

from newllm.data.encoded import EncodedSplit


def encoded(sentences: Sequence[Sequence[int]]) -> EncodedSplit:
    """A split of sentences, with `<BOS>` and `<EOS>`."""
    ids_S = np.array([*chain(*sentences)], np.int32)
    return EncodedSplit(ids_S, np.array([len(ids) for ids in sentences], np.int32))
