"""Sources as a user would write them: an endless task, and a stream of documents.

Shape suffixes: B batch, L symbols to copy, T time.
"""

import torch
from torch import Tensor

from newllm.data.batch import IGNORE, Batch
from newllm.data.source import Source, Split

SEPARATOR, FIRST_SYMBOL = 4, 5


class CopyBatches(Split):
    """Random symbols, a separator, and the symbols again, of which only these are scored."""

    metrics = ("loss", "accuracy", "accuracy_sequence")
    slices = ("even", "odd")

    def __init__(self, length: int, num_symbols: int, seed: int, num_batches: int | None) -> None:
        self.length, self.num_symbols, self.seed = length, num_symbols, seed
        self.num_batches = num_batches

    def batch(self, epoch: int, number: int) -> Batch:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        shape, last = (8, self.length), FIRST_SYMBOL + self.num_symbols
        symbols_BL = torch.randint(FIRST_SYMBOL, last, shape, generator=generator)
        row_B = number * 8 + torch.arange(8)
        return Batch(
            tokens_BT=torch.cat([symbols_BL, torch.full((8, 1), SEPARATOR), symbols_BL[:, :-1]], 1),
            targets_BT=torch.cat([torch.full(shape, IGNORE), symbols_BL], 1),
            row_B=row_B,
            slice_B=row_B % 2,
        )


class Copy(Source):
    """Train on a length without an end; evaluate on it and on twice that length."""

    def __init__(self, max_length: int = 12, num_symbols: int = 4, seed: int = 1) -> None:
        self.name, self.max_length = "copy", max_length
        self.vocabulary_size, length = FIRST_SYMBOL + num_symbols, max_length // 4
        self.train = CopyBatches(length, num_symbols, seed, None)
        self.evaluation = {
            "validation": CopyBatches(length, num_symbols, 101, 2),
            "twice_as_long": CopyBatches(2 * length, num_symbols, 102, 3),
        }

    def reference_losses(self, split: str) -> dict[str, float]:
        return {"chance": 1.386}


class Chunks(Split):
    """Rows of documents end to end, a chunk of each row at a time."""

    def __init__(self, tokens_BS: Tensor, starts_BS: Tensor, chunk: int) -> None:
        self.tokens_BS, self.starts_BS, self.chunk = tokens_BS, starts_BS, chunk
        self.num_batches = (tokens_BS.shape[1] - 1) // chunk

    def batch(self, epoch: int, number: int) -> Batch:
        here = slice(number * self.chunk, (number + 1) * self.chunk)
        following = slice(here.start + 1, here.stop + 1)
        is_last_BT = self.starts_BS[:, following]  # nothing tells of the next document
        return Batch(
            tokens_BT=self.tokens_BS[:, here],
            targets_BT=self.tokens_BS[:, following].masked_fill(is_last_BT, IGNORE),
            row_B=torch.arange(len(self.tokens_BS)) + number * len(self.tokens_BS),
            reset_BT=self.starts_BS[:, here],
            continues_B=torch.arange(len(self.tokens_BS)),
        )


class Stream(Source):
    """Documents of random tokens."""

    def __init__(self, max_length: int = 5) -> None:
        self.name, self.vocabulary_size, self.max_length = "stream", 12, max_length
        generator = torch.Generator().manual_seed(1)
        tokens_BS = torch.randint(4, 12, (3, 41), generator=generator)
        starts_BS = torch.rand(3, 41, generator=generator) < 0.1
        starts_BS[:, 0] = True
        self.train = Chunks(tokens_BS, starts_BS, max_length)
        self.evaluation = {"validation": Chunks(tokens_BS.flip(0), starts_BS.flip(0), max_length)}
