"""The plain loop that carries a cell over time, and dropout masks.

Shapes: B batch, T time (tokens), E input, C context, H hidden, N dropout masks of a step, M their
width.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from newllm.models.cell import Cell
from newllm.models.layer import State, check_shapes, where_row

Watch = Callable[[int, State, dict[str, Tensor]], State]

MASK_BLOCK = 64  # steps whose masks are drawn in one call


@dataclass(frozen=True)
class DropoutMasks:
    """The dropout masks of a chunk, drawn in blocks of `MASK_BLOCK` steps.

    A block depends only on the seed, its first step, its length and the kind of device, so it can
    be drawn again in the backward pass instead of being kept.
    """

    seed: int
    probability: float
    step_shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device
    first_step: int = 0

    @classmethod
    @torch.compiler.disable  # compiled, torch.randint would draw another seed
    def draw(cls, cell: Cell, inputs: Tensor) -> "DropoutMasks | None":
        """Masks for inputs [B, T, E], seeded from torch's generator; None without dropout."""
        if not cell.training or cell.dropout == 0:
            return None
        return cls(
            seed=int(torch.randint(2**31, ())),
            probability=cell.dropout,
            step_shape=(cell.num_masks, cell.mask_dim, inputs.shape[0]),
            dtype=next(cell.parameters()).dtype,
            device=inputs.device,
        )

    @property
    def scale(self) -> float:
        """Factor of the elements that are kept."""
        return 1 / (1 - self.probability)

    @property
    def dropped(self) -> int:
        """Elements whose draw is below this are dropped."""
        return min(round(self.probability * 2**16), 2**16 - 1) - 2**15

    def starting_at(self, step: int) -> "DropoutMasks":
        """The masks from a later step on, which must be the first of a block."""
        assert step % MASK_BLOCK == 0, step
        return replace(self, first_step=self.first_step + step)

    def draws(self, num_steps: int) -> Tensor:
        """Uniform int16 draws [N, num_steps, M, B] for the masks of the first steps."""
        num_masks, mask_dim, batch_size = self.step_shape
        shape = (num_masks, num_steps, mask_dim, batch_size)
        if self.device.type != "cpu":  # a copy from here would have to wait
            own = torch.Generator(self.device).manual_seed(self.seed + self.first_step)
            low, high = -(2**15), 2**15
            return torch.randint(
                low, high, shape, dtype=torch.int16, device=self.device, generator=own
            )
        # Four draws from each word of a fast generator: many times faster than bernoulli_.
        generator = np.random.SFC64(self.seed + self.first_step)
        words = generator.random_raw(-(-math.prod(shape) // 4)).view(np.int16)
        return torch.from_numpy(words[: math.prod(shape)].reshape(shape))

    def block(self, num_steps: int) -> Tensor:
        """The masks [N, num_steps, B, M] of the first steps, scaled by 1 / (1 - probability)."""
        draws_NTBM = self.draws(num_steps).transpose(2, 3)
        masks = torch.empty(draws_NTBM.shape, dtype=self.dtype, device=self.device)
        torch.ge(draws_NTBM, self.dropped, out=masks)
        return masks.mul_(self.scale)

    def steps(self, num_steps: int) -> Iterator[tuple[Tensor, ...]]:
        """The N masks [B, M] of each step, in order."""
        for block_NTBM in self._blocks(num_steps):
            yield from (masks_NBM.unbind() for masks_NBM in block_NTBM.unbind(1))

    def all(self, num_steps: int) -> Tensor:
        """The masks [N, num_steps, B, M] of all steps."""
        return torch.cat([*self._blocks(num_steps)], dim=1)

    def _blocks(self, num_steps: int) -> Iterator[Tensor]:
        for first_step in range(0, num_steps, MASK_BLOCK):
            masks = self.starting_at(first_step)
            yield masks.block(min(MASK_BLOCK, num_steps - first_step))


class Chunk(NamedTuple):
    """A chunk of tokens for a cell to read.

    Attributes:
        inputs_BTE: inputs of the cell.
        state: state before the first token.
        masks: dropout masks; None drops nothing.
        pad_BT: bool, true where the state stays as it was; None means nowhere.
        reset_BT: bool, true where the token is read from the initial state; None means nowhere.
        found: spares work if the same chunk is read twice, first without gradients: the first call
            appends to this list, and the second takes from it.
    """

    inputs_BTE: Tensor
    state: State
    masks: DropoutMasks | None = None
    pad_BT: Tensor | None = None
    reset_BT: Tensor | None = None
    found: list[Tensor] | None = None


# Carries a cell over a chunk: outputs [B, T, H], and the state after the chunk. All recurrences
# give what `Reference` gives. Outputs at padding mean nothing, and get no gradient.
Recurrence = Callable[[Cell, Chunk], tuple[Tensor, State]]


class Reference:
    """The plain loop over time: slow, simple, and the specification of every other recurrence."""

    def __call__(self, cell: Cell, chunk: Chunk) -> tuple[Tensor, State]:
        """Read a chunk."""
        return roll(cell, chunk)


def roll(cell: Cell, chunk: Chunk, watch: Watch | None = None) -> tuple[Tensor, State]:
    """Call the cell once per token, each time with the dropout masks of that step.

    `watch(t, state, gates)` is called after each step and returns the state to continue with.
    """
    inputs_BTE, state, masks, pad_BT, reset_BT, _ = chunk
    batch_size, num_steps, _ = inputs_BTE.shape
    outputs = []
    initial = cell.initial_state(batch_size)
    of_steps: Iterable[Sequence[Tensor] | None] = masks.steps(num_steps) if masks else repeat(None)
    for t, step_masks in zip(range(num_steps), of_steps, strict=False):
        if reset_BT is not None:
            state = where_row(reset_BT[:, t], initial, state)
        results = cell(inputs_BTE[:, t], state, step_masks)
        if t == 0:
            check_step(cell, batch_size, results, state)
        output_BH, after, gates = results
        state = after if pad_BT is None else where_row(pad_BT[:, t], state, after)
        if watch is not None:
            state = watch(t, state, gates)
        outputs.append(output_BH)
    return torch.stack(outputs, dim=1), state


def check_step(cell: Cell, batch_size: int, results: Any, before: State) -> None:
    """Raise a ValueError that names the cell if a step returns anything malformed."""
    name = f"{type(cell).__name__} ({cell.description})"
    if not (isinstance(results, tuple) and len(results) == 3 and isinstance(results[2], dict)):
        raise ValueError(f"{name}: a step must return an output, a state, and a dict of gates")
    output_BH, state, gates = results
    check_shapes(name, output_BH, (batch_size, cell.output_dim), state)
    found, wanted = (
        [(list(part.shape), part.dtype) for part in parts] for parts in (state, before)
    )
    if found != wanted:
        raise ValueError(
            f"{name}: a step must keep the shapes and types of its state, {wanted}, not {found}"
        )
    for gate, values in gates.items():
        if not isinstance(values, Tensor) or values.dim() < 1 or values.shape[0] != batch_size:
            raise ValueError(
                f"{name}: gate {gate} must be a tensor whose first dimension is the batch"
            )
