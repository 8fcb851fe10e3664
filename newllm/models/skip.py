"""A context that also receives a context several tokens before it.

Shapes: B batch, E input, C context, H hidden.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from newllm.config.faults import no_such_option, raise_faults, too_small
from newllm.models.cell import ContextCell
from newllm.models.layer import State, zeros
from newllm.models.shortcut import Shortcut

SKIPS = ("add", "read")
MOST_STEPS = 1024  # each is a tensor of the state


class SkipCell(ContextCell):
    """A context that also receives the context S = `skip_steps` tokens before it.

        add:   h_t = FNN(x_t, c_{t-1})
               s_t = sigmoid(W h_t + b)
               c_t = clamp(LN((1 - s_t) update(h_t, c_{t-1}) + s_t c_{t-S}))
        read:  h_t = FNN(x_t, c_{t-1}, c_{t-S})
               c_t = clamp(LN(update(h_t, c_{t-1})))

    Both shorten the path of a gradient through T tokens to T / S steps. Reading several earlier
    states is a NARX network (Lin et al. 1996, doi 10.1109/72.548162) or a higher-order recurrent
    network (Soltani & Jiang 2016, arXiv 1605.00064); Zhang et al. (2016, arXiv 1602.08210) measure
    how far such connections skip.

    The state is the last S contexts, the latest first, each [B, C]; they are zeros before the first
    token.

    Args:
        input_dim: E.
        context_dim: C.
        skip_steps: S, from 2 to 1,024.
        skip: "add" or "read".
        settings: other settings of a `ContextCell`.

    Raises:
        ValueError: a setting is impossible.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int,
        skip_steps: int = 4,
        skip: str = "add",
        **settings: Any,
    ) -> None:
        faults = [
            *too_small("model", 2, skip_steps=skip_steps),
            *no_such_option("model", SKIPS, skip=skip),
        ]
        if skip_steps > MOST_STEPS:
            faults.append(f"model.skip_steps={skip_steps}: must be at most {MOST_STEPS}")
        raise_faults(faults)
        super().__init__(input_dim + context_dim * (skip == "read"), context_dim, **settings)
        self.input_dim = input_dim  # without what is read of the context
        self.skip_steps = skip_steps
        self.skip = skip
        self.shortcut = Shortcut(self.hidden_dim, context_dim) if skip == "add" else None
        if self.state_bits is not None:
            self.state_bits *= skip_steps

    def initial_state(self, batch_size: int) -> State:
        """S contexts of zeros [B, C]."""
        return tuple(zeros(self, batch_size, self.context_dim) for _ in range(self.skip_steps))

    def forward(
        self, inputs_BE: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """Take one step; gates are [B, C]."""
        latest_BC, earliest_BC = state[0], state[-1]
        if self.shortcut is None:
            inputs_BE = torch.cat((inputs_BE, earliest_BC), dim=-1)
        hidden_BH = self.hidden(inputs_BE, latest_BC, masks)
        context_BC, gates = self.gating(hidden_BH, latest_BC)
        if self.shortcut is not None:
            context_BC, gate_BC = self.shortcut(hidden_BH, context_BC, earliest_BC)
            gates = gates | {"shortcut": gate_BC}
        return hidden_BH, (self.bounded(context_BC), *state[:-1]), gates

    @property
    def description(self) -> str:
        """That of a `ContextCell`, then what is skipped."""
        return f"{super().description} {self.skip}{self.skip_steps}"
