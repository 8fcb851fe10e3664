"""Memory for the steps of a segment, used again from one training step to the next.

Fresh memory costs a page fault every 4 kB, which took as long as a third of the arithmetic.
"""

import weakref
from collections import defaultdict

import torch
from torch import Tensor


class Memory:
    """Blocks of memory that nobody uses at the moment, by size (a power of two) and type.

    It keeps all that was ever needed at once. A copy starts empty.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = defaultdict(list)

    def take(self, num_elements: int, dtype: torch.dtype) -> Tensor:
        """A block of at least so many elements, with anything in it."""
        size = 1 << (num_elements - 1).bit_length()
        try:
            return self._free[size, dtype].pop()
        except IndexError:
            # A block of inference mode could not be written to in training.
            with torch.inference_mode(False):
                return torch.empty(size, dtype=dtype, device="cpu")

    def give_back(self, blocks: list[Tensor]) -> None:
        """Let others use these blocks."""
        for block in blocks:
            self._free[len(block), block.dtype].append(block)

    def __reduce__(self) -> tuple[type["Memory"], tuple[()]]:
        return Memory, ()


class Buffers:
    """What one owner took from the memory; it goes back when this object is gone.

    So nothing of it may be kept any longer than this.
    """

    def __init__(self, memory: Memory, dtype: torch.dtype) -> None:
        self._memory, self._dtype = memory, dtype
        self._blocks: list[Tensor] = []
        weakref.finalize(self, memory.give_back, self._blocks)

    def matrix(self, num_rows: int, num_columns: int) -> Tensor:
        """A matrix with anything in it."""
        block = self._memory.take(num_rows * num_columns, self._dtype)
        self._blocks.append(block)
        return block[: num_rows * num_columns].view(num_rows, num_columns)
