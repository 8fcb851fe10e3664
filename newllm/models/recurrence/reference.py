"""Carrying a cell over time.

Shapes: B batch, T time (tokens), E embedding, C context, H hidden, N dropout masks of a step.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import NamedTuple, Protocol

import numpy as np
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

    Only `Reference` must record gates; elsewhere they may be missing. Hidden vectors of padding
    mean nothing, and no gradient need pass through them. `recompute` is for the model that scores
    long sequences; a call itself keeps what it needs.
    """

    recompute: bool

    def __call__(
        self,
        cell: ContextCell,
        embedded_BTE: Tensor,
        context_BC: Tensor,
        masks: "DropoutMasks | None" = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
        known_BTC: Tensor | None = None,
    ) -> Rollout:
        """Read the embedded tokens in order, starting from a context.

        Args:
            cell: the step to take.
            embedded_BTE: the chunk.
            context_BC: the context before the first token.
            masks: of the dropout; None drops nothing.
            pad_BT: bool, true where the context stays as it was; None means nowhere.
            reset_BT: bool, true where the context is zeroed before the token; None means nowhere.
            known_BTC: the contexts after each token, if an earlier call has found them.
        """
        ...


@dataclass(frozen=True)
class DropoutMasks:
    """The dropout masks of one chunk, or from some step of it on; a block of steps a draw.

    A block depends on nothing but the seed, its first step and its length, so whoever recomputes
    its steps can draw it again instead of keeping it.
    """

    seed: int
    probability: float
    step_shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device
    first_step: int = 0

    @classmethod
    @torch.compiler.disable  # compiled, torch.randint would draw another seed
    def draw(cls, cell: ContextCell, tokens: Tensor) -> "DropoutMasks | None":
        """Masks for a chunk [B, T], seeded from torch's global generator; None if none drop."""
        if not cell.training or cell.dropout == 0:
            return None
        return cls(
            seed=int(torch.randint(2**31, ())),
            probability=cell.dropout,
            step_shape=(cell.fnn.num_masks, cell.hidden_dim, tokens.shape[0]),
            dtype=cell.input.weight.dtype,
            device=tokens.device,
        )

    @property
    def scale(self) -> float:
        """What is kept is multiplied by this."""
        return 1 / (1 - self.probability)

    @property
    def dropped(self) -> int:
        """What draws below this is dropped."""
        return min(round(self.probability * 2**16), 2**16 - 1) - 2**15

    def starting_at(self, step: int) -> "DropoutMasks":
        """Those from a later step on, which must be the first of a block."""
        assert step % MASK_BLOCK == 0, step
        return replace(self, first_step=self.first_step + step)

    def draws(self, num_steps: int) -> Tensor:
        """A uniform int16 for every element of the first steps' masks, [N, num_steps, H, B]."""
        num_masks, hidden_dim, batch_size = self.step_shape
        shape = (num_masks, num_steps, hidden_dim, batch_size)
        # Four draws from each word of a fast generator: many times faster than bernoulli_.
        generator = np.random.SFC64(self.seed + self.first_step)
        words = generator.random_raw(-(-math.prod(shape) // 4)).view(np.int16)
        return torch.from_numpy(words[: math.prod(shape)].reshape(shape)).to(self.device)

    def block(self, num_steps: int) -> Tensor:
        """The masks [N, num_steps, B, H] of the first steps, scaled by 1 / (1 - probability)."""
        draws_NTBH = self.draws(num_steps).transpose(2, 3)
        masks = torch.empty(draws_NTBH.shape, dtype=self.dtype, device=self.device)
        torch.ge(draws_NTBH, self.dropped, out=masks)
        return masks.mul_(self.scale)

    def steps(self, num_steps: int) -> Iterator[tuple[Tensor, ...]]:
        """The N masks [B, H] of each step, in order."""
        for first_step in range(0, num_steps, MASK_BLOCK):
            masks = self.starting_at(first_step)
            block_NTBH = masks.block(min(MASK_BLOCK, num_steps - first_step))
            yield from (masks_NBH.unbind() for masks_NBH in block_NTBH.unbind(1))


class Reference:
    """The plain loop over time: slow, obvious, and the specification of every other recurrence."""

    recompute = False

    def __call__(
        self,
        cell: ContextCell,
        embedded_BTE: Tensor,
        context_BC: Tensor,
        masks: DropoutMasks | None = None,
        pad_BT: Tensor | None = None,
        reset_BT: Tensor | None = None,
        known_BTC: Tensor | None = None,
        intervene: Intervene | None = None,
    ) -> Rollout:
        """Read a chunk, as `Recurrence` says.

        `intervene(t, context_BC)` returns what the context after token t shall be instead.
        """
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
