"""Memory for the steps of a segment, used again from one training step to the next.

Fresh memory costs a page fault every 4 kB, which took as long as a third of the arithmetic.

Shapes: B batch, K steps of a segment, N any width.
"""

import weakref
from collections import defaultdict

import torch
from torch import Tensor

ALL = -1
Rows = list[Tensor]


def split_steps(buffer: Tensor, batch_size: int) -> Rows:
    """The rows of a buffer [K * B, N]."""
    return [*buffer.split(batch_size), buffer]


class Memory:
    """Blocks of memory that nobody uses at the moment, by size (a power of two), type and place."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, torch.dtype, torch.device], list[Tensor]] = defaultdict(list)

    def take(self, num_elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A block of at least so many elements, with anything in it."""
        size = 1 << (num_elements - 1).bit_length()
        free = self._free[size, dtype, device]
        return free.pop() if free else torch.empty(size, dtype=dtype, device=device)

    def give_back(self, blocks: list[Tensor]) -> None:
        """Let others use these blocks."""
        for block in blocks:
            self._free[len(block), block.dtype, block.device].append(block)

    def __deepcopy__(self, memo: dict[int, object]) -> "Memory":
        return Memory()


class Buffers:
    """The buffers of one segment; they go back to the memory when this object is gone.

    So nothing of them may be kept any longer than this.
    """

    def __init__(self, memory: Memory, num_steps: int, batch_size: int, like: Tensor) -> None:
        self._memory = memory
        self._num_rows, self._batch_size = num_steps * batch_size, batch_size
        self._dtype, self._device = like.dtype, like.device
        self._blocks: list[Tensor] = []
        weakref.finalize(self, memory.give_back, self._blocks)

    def rows(self, width: int) -> Rows:
        """Rows [B, width] for every step, with anything in them."""
        num_elements = self._num_rows * width
        block = self._memory.take(num_elements, self._dtype, self._device)
        self._blocks.append(block)
        return split_steps(block[:num_elements].view(self._num_rows, width), self._batch_size)
