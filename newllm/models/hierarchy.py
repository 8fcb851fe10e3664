"""Contexts that change at different rates, read together.

Shapes: B batch, E input, C all contexts, K contexts, H hidden.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from newllm.config.faults import no_such_option, raise_faults, too_small
from newllm.models.cell import ContextCell
from newllm.models.layer import State, zeros
from newllm.models.parts import PerPart, even_sizes
from newllm.models.quantization import Quantized


class Rates(nn.Module, ABC):
    """How far each number of the context moves to its candidate.

    Args:
        periods: of each context, in tokens.
        sizes: widths of the contexts.
    """

    index_C: Tensor

    def __init__(self, periods: Sequence[int], sizes: Sequence[int]) -> None:
        super().__init__()
        context_of = [index for index, size in enumerate(sizes) for _ in range(size)]
        self.register_buffer("index_C", torch.tensor(context_of), persistent=False)

    @abstractmethod
    def forward(self, clock: State) -> tuple[Tensor, State]:
        """Rates from 0 to 1, [C] or [B, C], and the clock after the token."""

    def initial_clock(self, like_BC: Tensor) -> State:
        """What the rates know of the time before the first token."""
        return ()


class Clocked(Rates):
    """1 at the first token and every `period` tokens after it, else 0. Padding does not count."""

    period_K: Tensor

    def __init__(self, periods: Sequence[int], sizes: Sequence[int]) -> None:
        super().__init__(periods, sizes)
        self.register_buffer("period_K", torch.tensor(periods), persistent=False)

    def forward(self, clock: State) -> tuple[Tensor, State]:
        (count_B,) = clock
        is_due_BK = count_B[:, None] % self.period_K == 0
        return is_due_BK[:, self.index_C], (count_B + 1,)

    def initial_clock(self, like_BC: Tensor) -> State:
        return (like_BC.new_zeros(like_BC.shape[0], dtype=torch.long),)


class Learned(Rates):
    """1 - exp(-1 / period), a leaky integrator whose period is learned."""

    def __init__(self, periods: Sequence[int], sizes: Sequence[int]) -> None:
        super().__init__(periods, sizes)
        self.log_period_K = nn.Parameter(torch.tensor([math.log(period) for period in periods]))

    def forward(self, clock: State) -> tuple[Tensor, State]:
        rate_K = -torch.expm1(-torch.exp(-self.log_period_K))
        return rate_K[self.index_C], clock


RATES: dict[str, type[Rates]] = {"clocked": Clocked, "learned": Learned}


class HierarchyCell(ContextCell):
    """Short, middle and long contexts c^1 ... c^K, which change at different rates.

        h_t    = FNN(x_t, c_{t-1}^1, ..., c_{t-1}^K)          reads all contexts together
        ~c_t^k = clamp(LN(update(h_t, c_{t-1}^k)))
        c_t^k  = (1 - r_t^k) c_{t-1}^k + r_t^k ~c_t^k

    With clocked rates, r_t^k is 1 at every `periods[k]`-th token, from the first on, and 0 between
    them, as in a clockwork RNN (Koutník et al. 2014, arXiv 1402.3511). There, a module reads only
    itself and slower ones. With learned rates, r^k = 1 - exp(-1 / tau^k), where tau^k is learned
    from `periods[k]` on: a network of leaky integrators with several timescales (Yamashita & Tani
    2008, doi 10.1371/journal.pcbi.1000220), whose timescales there are fixed.

    The state is the contexts [B, C] and, with clocked rates, the number of tokens [B].

    Args:
        input_dim: E.
        context_dim: C, of all contexts together; their widths differ by at most one.
        periods: of the contexts, in tokens.
        rates: "clocked" or "learned".
        normalization: factory of the normalization of a context, from its width.
        settings: other settings of a `ContextCell`.

    Raises:
        ValueError: a setting is impossible.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int,
        periods: Sequence[int] = (1, 4, 16),
        rates: str = "clocked",
        normalization: Callable[[int], nn.Module] = nn.Identity,
        **settings: Any,
    ) -> None:
        raise_faults(_faults(context_dim, periods, rates))
        num_contexts = len(periods)
        super().__init__(
            input_dim,
            context_dim,
            normalization=partial(PerPart, num_parts=num_contexts, normalization=normalization),
            **settings,
        )
        assert isinstance(self.normalization, PerPart)
        if rates == "learned" and self.normalization.kind is Quantized:
            raise ValueError("model.rates=learned: leaves no context quantized; use clocked")
        self.periods = list(periods)
        self.rates = RATES[rates](self.periods, even_sizes(context_dim, num_contexts))

    def initial_state(self, batch_size: int) -> State:
        """Contexts of zeros [B, C], and a clock of 0 [B] if there is one."""
        context_BC = zeros(self, batch_size, self.context_dim)
        return context_BC, *self.rates.initial_clock(context_BC)

    def forward(
        self, inputs_BE: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """Take one step; gates are [B, C]."""
        context_BC, *clock = state
        hidden_BH = self.hidden(inputs_BE, context_BC, masks)
        updated_BC, gates = self.gating(hidden_BH, context_BC)
        candidate_BC = self.bounded(updated_BC)
        rate, clock_after = self.rates(tuple(clock))
        context_BC = torch.lerp(context_BC, candidate_BC, rate.to(context_BC.dtype))
        return hidden_BH, (context_BC, *clock_after), gates

    @property
    def description(self) -> str:
        """That of a `ContextCell`, then rates and periods."""
        kind = type(self.rates).__name__.lower()
        return f"{super().description} {kind} {'-'.join(map(str, self.periods))}"


def _faults(context_dim: int, periods: Sequence[int], rates: str) -> list[str]:
    faults = no_such_option("model", RATES, rates=rates)
    is_list = isinstance(periods, Sequence) and len(periods) > 0 and not isinstance(periods, str)
    if not is_list or not all(isinstance(period, int) and period >= 1 for period in periods):
        shown = str([*periods] if is_list else periods).replace(" ", "")
        faults.append(f"model.periods={shown}: must be a list of whole numbers, at least 1 each")
    elif context_dim < len(periods):
        faults += too_small("model", len(periods), context_dim=context_dim)
    return faults
