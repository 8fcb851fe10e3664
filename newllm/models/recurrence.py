"""Carrying a cell over time.

Shapes: B batch, T time (tokens), E embedding, C context, H hidden, N dropout masks of a step.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from newllm.models.cell import ContextCell

Intervene = Callable[[int, Tensor], Tensor]

MASK_BLOCK = 64  # steps whose masks are drawn in one call


class Rollout(NamedTuple):
    """What a cell did over a chunk; `contexts_BTC` holds the context after each token."""

    hidden_BTH: Tensor
    contexts_BTC: Tensor
    gates: dict[str, Tensor]


class Recurrence(Protocol):
    """A way to carry a cell over a chunk. All ways give what `Reference` gives.

    Only `Reference` must record gates; elsewhere they may be missing.
    """

    def __call__(
        self,
        cell: ContextCell,
        embedded_BTE: Tensor,
        context_BC: Tensor,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
    ) -> Rollout:
        """Read the embedded tokens in order, starting from a context.

        Args:
            cell: the step to take.
            embedded_BTE: the chunk.
            context_BC: the context before the first token.
            pad_BT: bool, true where the context stays as it was; None means nowhere.
            reset_BT: bool, true where the context is zeroed before the token; None means nowhere.
        """
        ...


@dataclass(frozen=True)
class DropoutMasks:
    """The dropout masks of one chunk, scaled by 1 / (1 - probability), a block of steps a draw.

    A block depends on the seed and its first step alone, so whoever recomputes a step can replay
    its masks in any order instead of keeping them.
    """

    seed: int
    probability: float
    step_shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def draw(cls, cell: ContextCell, embedded_BTE: Tensor) -> "DropoutMasks | None":
        """Masks for this chunk, seeded from torch's global generator; None if none are needed."""
        if not cell.training or cell.dropout == 0:
            return None
        return cls(
            seed=int(torch.randint(2**31, ())),
            probability=cell.dropout,
            step_shape=(cell.fnn.num_masks, embedded_BTE.shape[0], cell.hidden_dim),
            dtype=embedded_BTE.dtype,
            device=embedded_BTE.device,
        )

    def block(self, first_step: int, num_steps: int) -> Tensor:
        """The masks [N, num_steps, B, H] of the block that starts at a step."""
        generator = torch.Generator(self.device).manual_seed(self.seed + first_step)
        num_masks, batch_size, hidden_dim = self.step_shape
        shape = (num_masks, num_steps, batch_size, hidden_dim)
        # Four draws of 16 bits from each random word: several times faster than bernoulli_.
        words = torch.empty(-(-math.prod(shape) // 4), dtype=torch.int64, device=self.device)
        draws = words.random_(-(2**63), None, generator=generator).view(torch.int16)
        dropped = min(round(self.probability * 2**16), 2**16 - 1) - 2**15
        masks = torch.empty(shape, dtype=self.dtype, device=self.device)
        torch.ge(draws[: masks.numel()].view(shape), dropped, out=masks)
        return masks.div_(1 - self.probability)

    def steps(self, num_steps: int) -> Iterator[tuple[Tensor, ...]]:
        """The N masks [B, H] of each step, in order."""
        for first_step in range(0, num_steps, MASK_BLOCK):
            block_NTBH = self.block(first_step, min(MASK_BLOCK, num_steps - first_step))
            yield from (masks_NBH.unbind() for masks_NBH in block_NTBH.unbind(1))


class Reference:
    """The plain loop over time: slow, obvious, and the specification of every other recurrence."""

    def __call__(
        self,
        cell: ContextCell,
        embedded_BTE: Tensor,
        context_BC: Tensor,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
        intervene: Intervene | None = None,
    ) -> Rollout:
        """Read a chunk, as `Recurrence` says.

        `intervene(t, context_BC)` returns what the context after token t shall be instead.
        """
        masks = DropoutMasks.draw(cell, embedded_BTE)
        step_masks = None if masks is None else masks.steps(embedded_BTE.shape[1])
        return roll(cell, embedded_BTE, context_BC, pad_BT, reset_BT, step_masks, intervene)


def roll(
    cell: ContextCell,
    embedded_BTE: Tensor,
    context_BC: Tensor,
    pad_BT: Tensor | None,
    reset_BT: Tensor | None,
    step_masks: Iterable[Sequence[Tensor]] | None,
    intervene: Intervene | None = None,
) -> Rollout:
    """Call the cell once a token, each time with that step's dropout masks."""
    hiddens, contexts, gates = [], [], []
    masks_of_step: Iterable[Sequence[Tensor] | None] = step_masks or repeat(None)
    for t, masks in zip(range(embedded_BTE.shape[1]), masks_of_step, strict=False):
        if reset_BT is not None:
            context_BC = context_BC.masked_fill(reset_BT[:, t, None], 0)
        hidden_BH, next_BC, step_gates = cell(embedded_BTE[:, t], context_BC, masks)
        if pad_BT is not None:
            next_BC = torch.where(pad_BT[:, t, None], context_BC, next_BC)
        context_BC = next_BC if intervene is None else intervene(t, next_BC)
        hiddens.append(hidden_BH)
        contexts.append(context_BC)
        gates.append(step_gates)
    return Rollout(
        hidden_BTH=torch.stack(hiddens, dim=1),
        contexts_BTC=torch.stack(contexts, dim=1),
        gates={name: torch.stack([step[name] for step in gates], dim=1) for name in gates[0]},
    )
