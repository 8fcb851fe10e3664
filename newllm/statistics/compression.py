"""What a general-purpose compressor makes of a text."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterable, Iterator, Sequence

MAX_KNOWN = 1 << 23  # bytes of training text
PRESET = 6  # of xz; its dictionary holds `MAX_KNOWN`


def xz_nats(known: Sequence[str], texts: Sequence[str]) -> float:
    """The size of texts that `xz` compresses after other texts, in nats.

    It is the size of all texts less that of the known ones. Texts are separated by a zero byte.

    Args:
        known: the training texts, of which the first `MAX_KNOWN` bytes are used.
        texts: to be compressed.
    """
    prefix = b"".join(_until(MAX_KNOWN, known))[:MAX_KNOWN]
    coded = b"".join(text.encode() + b"\0" for text in texts)
    return 8 * math.log(2) * (_size(prefix + coded) - _size(prefix))


def _until(num_bytes: int, texts: Iterable[str]) -> Iterator[bytes]:
    """The first texts that have so many bytes."""
    for text in texts:
        if num_bytes <= 0:
            return
        yield text.encode() + b"\0"
        num_bytes -= len(text.encode()) + 1


def _size(content: bytes) -> int:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": PRESET}]
    return len(lzma.compress(content, lzma.FORMAT_RAW, filters=filters))
