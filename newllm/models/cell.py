"""One step of a recurrent layer: the equations, and nothing of time or batching.

Shapes: B batch, E input (the embedding, in the first layer), C context, H hidden.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from newllm.config.faults import no_such_option, raise_faults, too_small
from newllm.models.fnn import FNNS
from newllm.models.gating import Additive, Gating
from newllm.models.layer import State, zeros
from newllm.models.parts import PerPart
from newllm.models.quantization import Quantized
from newllm.models.settings import dropout_faults

USUAL_EMBEDDING_DIM = 256  # the summary's; a description mentions only another


class Cell(nn.Module, ABC):
    """One step of a recurrent network, whose state may be any tensors.

    `Recurrent` carries it over time. `newllm.models.contract.check_cell` tests this contract.

    Attributes:
        input_dim: width of the input.
        output_dim: width of the output.
        dropout: probability of the dropout masks in training.
        num_masks: number of masks of a step.
        mask_dim: width of a mask.
        state_bits: bits that the state can hold after a token if it is quantized, else None.
    """

    dropout = 0.0
    num_masks = 0
    mask_dim = 0
    state_bits: float | None = None

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.output_dim = output_dim

    @abstractmethod
    def forward(
        self, inputs_BE: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """Take one step.

        Args:
            inputs_BE: input of the token.
            state: state before the token.
            masks: `num_masks` scaled dropout masks [B, mask_dim] to multiply by; None drops
                nothing.

        Returns:
            The output [B, output_dim], the state after the token, with shapes and types as before,
            and tensors to inspect by name, such as gates, B first.
        """

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state before the first token: tensors, B first."""

    @property
    def description(self) -> str:
        """The cell as named in the names of runs."""
        return f"{type(self).__name__.lower()} H{self.output_dim}"


class ContextCell(Cell):
    """Read one token against the context; write the hidden vector, change the context.

    A deep-transition Elman network (Pascanu et al. 2014); gated, it is close to a recurrent
    highway network (Zilly et al. 2017). The state is the context [B, C].

    Args:
        input_dim: E.
        context_dim: C.
        hidden_dim: H.
        num_layers: Linear layers before the heads, including the input projection.
        dropout: probability inside the feed-forward network.
        fnn: wiring of the feed-forward network, "plain" or "residual".
        context_clip: clamps each element of the context to +- this; None clamps nothing.
        gating: factory of the update of the context, from (hidden_dim, context_dim).
        normalization: factory of the normalization or quantization of the context, from
            (context_dim).

    Raises:
        ValueError: a setting is impossible; one line for each.
    """

    def __init__(
        self,
        input_dim: int,
        context_dim: int,
        hidden_dim: int,
        num_layers: int,
        dropout: float = 0.0,
        fnn: str = "plain",
        context_clip: float | None = None,
        gating: Callable[[int, int], Gating] = Additive,
        normalization: Callable[[int], nn.Module] = nn.Identity,
    ) -> None:
        faults = [
            *too_small(
                "model", 1, context_dim=context_dim, hidden_dim=hidden_dim, num_layers=num_layers
            ),
            *dropout_faults(dropout=dropout),
            *no_such_option("model", FNNS, fnn=fnn),
        ]
        if context_clip is not None and not context_clip > 0:
            faults.append(f"model.context_clip={context_clip}: must be above 0, or null for none")
        raise_faults(faults)
        super().__init__(input_dim, hidden_dim)
        self.context_dim = context_dim
        self.hidden_dim = self.mask_dim = hidden_dim
        self.num_layers = num_layers
        self.dropout = dropout
        self.context_clip = context_clip
        self.input = nn.Linear(input_dim + context_dim, hidden_dim)
        self.fnn = FNNS[fnn](hidden_dim, num_layers)
        self.num_masks = self.fnn.num_masks
        self.gating = gating(hidden_dim, context_dim)
        self.normalization = normalization(context_dim)
        if isinstance(self.normalization, Quantized | PerPart):
            self.state_bits = self.normalization.bits

    def initial_state(self, batch_size: int) -> State:
        """A context of zeros [B, C]."""
        return (zeros(self, batch_size, self.context_dim),)

    def forward(
        self, inputs_BE: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """Take one step; gates are [B, C]."""
        (context_BC,) = state
        hidden_BH = self.hidden(inputs_BE, context_BC, masks)
        context_BC, gates = self.gating(hidden_BH, context_BC)
        return hidden_BH, (self.bounded(context_BC),), gates

    def hidden(
        self, inputs_BE: Tensor, context_BC: Tensor, masks: Sequence[Tensor] | None
    ) -> Tensor:
        """The hidden vector [B, H], from the input and the context before the token."""
        hidden_BH: Tensor = self.fnn(self.input(torch.cat((inputs_BE, context_BC), dim=-1)), masks)
        return hidden_BH

    def bounded(self, context_BC: Tensor) -> Tensor:
        """The context, normalized and clamped."""
        context_BC = self.normalization(context_BC)
        if self.context_clip is not None:
            context_BC = context_BC.clamp(-self.context_clip, self.context_clip)
        return context_BC

    @property
    def description(self) -> str:
        """Such as `gated layernorm C512 H512 L9`, then settings that differ from the summary's."""
        words = [self.gating.name]
        normalization = self.normalization
        kind = normalization.kind if isinstance(normalization, PerPart) else type(normalization)
        if kind is not nn.Identity:
            words.append(kind.__name__.lower())
        words += [f"C{self.context_dim}", f"H{self.hidden_dim}", f"L{self.num_layers}"]
        if self.input_dim != USUAL_EMBEDDING_DIM:
            words.append(f"E{self.input_dim}")
        if self.context_clip is not None:
            words.append(f"clip{self.context_clip:g}")
        if not isinstance(self.fnn, FNNS["plain"]):
            words.append("residual")
        return " ".join(words)
