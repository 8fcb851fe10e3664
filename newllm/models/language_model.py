"""The language model: embedding, positions, a list of layers, and the output layer.

Shapes: B batch, T time (tokens), K tokens of a block, D width, C context, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from newllm.config.faults import no_such_option, raise_faults, too_small
from newllm.data.tokenizer import PAD
from newllm.models.initialization import normal
from newllm.models.layer import Layer, State, check_shapes, surely
from newllm.models.positions import LearnedPositions
from newllm.models.recurrence.reference import MASK_BLOCK
from newllm.models.recurrent import Intervene, Recurrent, Rollout
from newllm.models.settings import (
    dropout_faults,
    settings_of,
    unknown_faults,
)

Call = Callable[..., tuple[Tensor, State]]


class Trace(NamedTuple):
    """The logits of a model, and the contexts and gates of a layer as in `Rollout`."""

    logits_BTV: Tensor
    contexts_BTC: Tensor
    gates: dict[str, Tensor]
    state: State


class LanguageModel(nn.Module):
    """A next-token model that reads tokens in chunks of any size.

    Reading token by token, chunk by chunk or all at once gives the same logits, and no future
    token changes an earlier logit. `<PAD>`, wherever it stands, leaves its row's state as it was.
    The state is one tuple of tensors, B first: of learned positions, then of each layer.

    Args:
        vocabulary_size: V, the number of output classes.
        embedding_dim: width of the embedding, which the first layer reads.
        layers: factories that make a layer from the width of its input and from those `settings`
            that it takes and was not given before.
        positions: "none"; "learned", a table of max_length vectors added to the embedding; or
            "rotary", if a layer takes it.
        max_length: number of learned positions; unused without them.
        embedding_dropout: probability for each element of the embeddings.
        output_dropout: probability for each element of the output layer's input.
        recompute: let `score` keep only the state between blocks of tokens, and compute everything
            else again in the backward pass. This saves memory on long sequences and takes time.
        initialization: initializes the weights in place.
        settings: settings of the layers by name, such as hidden_dim.

    Raises:
        ValueError: a setting is impossible, or no layer takes it; one line for each.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int,
        layers: Sequence[Callable[..., Layer]],
        positions: str = "none",
        max_length: int = 32,
        embedding_dropout: float = 0.0,
        output_dropout: float = 0.0,
        recompute: bool = False,
        initialization: Callable[["LanguageModel"], None] = normal,
        **settings: Any,
    ) -> None:
        super().__init__()
        faults = [
            *too_small(
                "model",
                1,
                vocabulary_size=vocabulary_size,
                embedding_dim=embedding_dim,
                max_length=max_length,
            ),
            *dropout_faults(embedding_dropout=embedding_dropout, output_dropout=output_dropout),
            *_layer_faults(layers, positions, settings),
        ]
        self.vocabulary_size = vocabulary_size
        self.recompute = recompute
        width = max(1, embedding_dim)  # an impossible width must not hide other faults
        self.embedding = nn.Embedding(max(1, vocabulary_size), width)
        self.positions = (
            LearnedPositions(width, max(1, max_length)) if positions == "learned" else None
        )
        self.layers = nn.ModuleList()
        try:
            for layer in _built(layers, width, {"positions": positions} | settings):
                self.layers.append(layer)
                width = layer.output_dim
        except ValueError as error:
            faults += str(error).splitlines()
        raise_faults(faults)
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.output_dropout = nn.Dropout(output_dropout)
        self.output = nn.Linear(width, vocabulary_size)
        self.sees_the_future = any(layer.sees_the_future for layer in self.parts)
        initialization(self)

    @property
    def parts(self) -> list[Layer]:
        """Everything between embedding and output: learned positions, if any, and the layers."""
        return [part for part in (self.positions, *self.layers) if isinstance(part, Layer)]

    @property
    def recurrent_layers(self) -> list[Recurrent]:
        """The layers that carry a cell; `trace` follows the first."""
        return [layer for layer in self.layers if isinstance(layer, Recurrent)]

    def forward(
        self, tokens: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Read a chunk and predict the token after each of its tokens.

        Args:
            tokens: token ids [B, T], with T >= 1.
            state: returned by an earlier call; None means the initial state.
            reset: bool [B, T], true where the row forgets everything before it reads that token.

        Returns:
            Logits [B, T, V] (those at `<PAD>` mean nothing) and the state after the chunk.
        """
        return self._read(tokens, self._padding(tokens), state, reset, Layer.__call__)

    def score(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
        padding_matters: bool = True,
    ) -> tuple[Tensor, Tensor, State]:
        """Read a chunk, as `forward` does, and compare the logits with targets [B, T].

        Args:
            tokens: as in `forward`.
            targets: token ids [B, T], or `IGNORE`.
            state: as in `forward`.
            reset: as in `forward`.
            padding_matters: false if `<PAD>` only trails and the state after the chunk is not used.
                An accelerator is then not asked where padding is, and may read it as a token.

        Returns:
            Cross-entropy in nats, 0 where the target is `IGNORE`, and whether the likeliest token
            is the target, both [B, T]; the state after the chunk.
        """
        if self.recompute and torch.is_grad_enabled():
            return self._score_in_blocks(tokens, targets, state, reset, padding_matters)
        pad_BT = self._padding(tokens, padding_matters)
        logits_BTV, state = self._read(tokens, pad_BT, state, reset, Layer.__call__)
        return (*score_logits(logits_BTV, targets), state)

    def trace(
        self,
        tokens: Tensor,
        state: State | None = None,
        intervene: Intervene | None = None,
    ) -> Trace:
        """Read a chunk, and keep all contexts and gates of the first recurrent layer.

        `intervene(t, context_BC)` returns what replaces the context after token t, in the trace and
        for the next token.
        """
        traced = self.recurrent_layers[0]
        rollouts: list[Rollout] = []

        def call(
            part: Layer, x: Tensor, own: State | None, pad: Tensor | None, reset: Tensor | None
        ) -> tuple[Tensor, State]:
            if part is not traced:
                return Layer.__call__(part, x, own, pad, reset)
            rollouts.append(traced.trace(x, own, pad, reset, intervene))
            return rollouts[0].outputs_BTD, rollouts[0].state

        logits_BTV, state = self._read(tokens, self._padding(tokens), state, None, call)
        return Trace(logits_BTV, rollouts[0].contexts_BTC, rollouts[0].gates, state)

    def _padding(self, tokens: Tensor, matters: bool = True) -> Tensor | None:
        """Where padding is, bool [B, T]; None if there is none, or where it can be read as tokens.

        A CPU saves the work of rows that have ended, so it always looks.
        """
        if not (matters or tokens.is_cpu or self.sees_the_future):
            return None
        pad_BT = tokens == PAD
        return None if surely(~pad_BT.any()) else pad_BT

    def _read(
        self,
        tokens: Tensor,
        pad_BT: Tensor | None,
        state: State | None,
        reset: Tensor | None,
        call: Call,
    ) -> tuple[Tensor, State]:
        """Read a chunk; `call(layer, x, state, pad, reset)` calls a layer."""
        hidden_BTD = self.embedding_dropout(self.embedding(tokens))
        after: list[Tensor] = []
        for part, own in zip(self.parts, self._by_part(state), strict=True):
            hidden_BTD, own_after = call(part, hidden_BTD, own, pad_BT, reset)
            name = f"{type(part).__name__} ({part.description})"
            check_shapes(name, hidden_BTD, (*tokens.shape, part.output_dim), own_after)
            after += own_after
        logits_BTV: Tensor = self.output(self.output_dropout(hidden_BTD))
        return logits_BTV, tuple(after)

    def _by_part(self, state: State | None) -> Iterator[State | None]:
        """The state of each part."""
        first = 0
        for part in self.parts:
            last = first + (0 if state is None else len(part.initial_state(1)))
            yield None if state is None else tuple(state[first:last])
            first = last

    def _score_in_blocks(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: State | None,
        reset: Tensor | None,
        padding_matters: bool,
    ) -> tuple[Tensor, Tensor, State]:
        state = self.initial_state(len(tokens)) if state is None else state
        resets = repeat(None) if reset is None else reset.split(MASK_BLOCK, 1)
        blocks = zip(
            tokens.split(MASK_BLOCK, 1), targets.split(MASK_BLOCK, 1), resets, strict=False
        )
        # A checkpoint has a backward pass only if one of its inputs needs a gradient.
        needed = self.embedding.weight.new_zeros(()).requires_grad_()
        losses, corrects = [], []
        for block in blocks:
            loss_BK, correct_BK, *state = checkpoint(
                partial(self._score_block, {}, padding_matters),
                *(needed, *block, *state),
                use_reentrant=True,
                preserve_rng_state=self.training,
            )
            losses.append(loss_BK)
            corrects.append(correct_BK)
        return torch.cat(losses, dim=1), torch.cat(corrects, dim=1), tuple(state)

    def _score_block(
        self,
        found: dict[Layer, list[Tensor]],
        padding_matters: bool,
        needed: Tensor,
        tokens: Tensor,
        targets: Tensor,
        reset: Tensor | None,
        *state: Tensor,
    ) -> tuple[Tensor, ...]:
        """Score a block; the second time, recurrences reuse what they `found` the first time."""

        def call(part: Layer, *arguments: Any) -> tuple[Tensor, State]:
            more = (found.setdefault(part, []),) if isinstance(part, Recurrent) else ()
            return Layer.__call__(part, *arguments, *more)

        pad_BT = self._padding(tokens, padding_matters)
        logits_BTV, after = self._read(tokens, pad_BT, state, reset, call)
        return (*score_logits(logits_BTV, targets), *after)

    def initial_state(self, batch_size: int) -> State:
        """The state before the first token."""
        states = [part.initial_state(batch_size) for part in self.parts]
        return tuple(tensor for state in states for tensor in state)

    def state_bytes(self, num_tokens: int) -> int:
        """Bytes of one sequence's state after `num_tokens` tokens."""
        return sum(part.state_bytes(num_tokens) for part in self.parts)

    def state_bits(self, num_tokens: int) -> float:
        """Bits that this state can hold."""
        return sum(part.state_bits(num_tokens) for part in self.parts)

    def flops_per_token(self, num_tokens: int) -> int:
        """Forward operations for the last of `num_tokens` tokens, counted as in `Layer`."""
        return sum(part.flops_per_token(num_tokens) for part in self.parts) + (
            2 * self.output.weight.numel()
        )

    @property
    def description(self) -> str:
        """The name of the model, from its layers."""
        words = " then ".join(str(layer.description) for layer in self.layers)
        takes_positions = any(hasattr(layer, "positions") for layer in self.layers)
        return f"{words} positions" if self.positions and not takes_positions else words


def _layer_faults(
    layers: Sequence[Callable[..., Layer]], positions: str, settings: dict[str, Any]
) -> list[str]:
    """One line for each setting that no layer takes."""
    if not layers:
        return ["model.layers=[]: a model needs at least one layer"]
    if wrong := [layer for layer in layers if not callable(layer)]:
        return [f"model.layers: {wrong[0]} is not a layer factory; add _partial_: true"]
    taken = set().union(*map(settings_of, layers))
    options = ["none", "learned", *(["rotary"] if "positions" in taken else [])]
    return [
        *no_such_option("model", options, positions=positions),
        *unknown_faults(settings, taken - {"positions"}),
    ]


def _built(
    layers: Sequence[Callable[..., Layer]], width: int, settings: dict[str, Any]
) -> Iterator[Layer]:
    """The layers, each with the settings that it takes.

    Raises:
        ValueError: a factory lacks a setting, or makes no layer.
    """
    for number, factory in enumerate(layers):
        own = settings_of(factory)
        try:
            layer = factory(width, **{key: settings[key] for key in settings if key in own})
        except TypeError as error:
            raise ValueError(f"model.layers[{number}]: {error}") from error
        if not isinstance(layer, Layer):
            raise ValueError(f"model.layers[{number}]: {type(layer).__name__} is not a Layer")
        yield layer
        width = layer.output_dim


def score_logits(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The losses and hits that `LanguageModel.score` returns, from logits."""
    at_least_float32 = torch.promote_types(logits_BTV.dtype, torch.float32)
    logits = logits_BTV.flatten(0, 1).to(at_least_float32)
    losses = F.cross_entropy(logits, targets_BT.flatten(), reduction="none")
    return losses.view_as(targets_BT), logits_BTV.argmax(-1) == targets_BT
