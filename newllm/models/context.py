"""The context-vector model: a cell, carried over time, whose whole memory is one vector.

Shapes: B batch, T time (tokens), E embedding, C context, H hidden, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from newllm.data.tokenizer import PAD
from newllm.models.cell import ContextCell
from newllm.models.fnn import FNNS
from newllm.models.gating import Additive, Gating
from newllm.models.initialization import normal
from newllm.models.language_model import (
    LanguageModel,
    State,
    dropout_faults,
    option_faults,
    raise_faults,
    score_logits,
    size_faults,
    surely,
)
from newllm.models.positions import LearnedPositions, token_positions
from newllm.models.recurrence.reference import (
    MASK_BLOCK,
    DropoutMasks,
    Intervene,
    Recurrence,
    Reference,
    Rollout,
)

POSITIONS = ("none", "learned")
USUAL_EMBEDDING_DIM = 256  # the summary's; a description mentions only another
REFERENCE = Reference()


class Trace(NamedTuple):
    """What a context model did on a chunk; `contexts_BTC` holds the context after each token."""

    logits_BTV: Tensor
    contexts_BTC: Tensor
    gates: dict[str, Tensor]
    state: State


class ContextModel(LanguageModel):
    """A recurrent language model of fixed memory, additive or gated.

    Its state is the context [B, C]; with learned positions (context [B, C], position [B]).

    Args:
        vocabulary_size: V, the number of output classes.
        embedding_dim: E.
        context_dim: C.
        hidden_dim: H.
        num_layers: Linear layers of the cell before its heads, the input projection among them.
        positions: "none", or "learned": a table of max_length vectors added to the embedding.
        max_length: the most tokens learned positions can tell apart; unused without them.
        dropout: probability inside the cell's feed-forward network.
        embedding_dropout: probability for each element of the embeddings.
        output_dropout: probability for each element that the output layer reads.
        fnn: its wiring, "plain" or "residual".
        context_clip: the context is clamped to +- this; None clamps nothing.
        gating: makes the change of the context from (hidden_dim, context_dim).
        normalization: makes the normalization of the context from (context_dim).
        recurrence: carries the cell over time.
        initialization: sets the fresh weights in place.

    Raises:
        ValueError: a setting is impossible; one line for each.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int = USUAL_EMBEDDING_DIM,
        context_dim: int = 512,
        hidden_dim: int = 512,
        num_layers: int = 9,
        positions: str = "none",
        max_length: int = 32,
        dropout: float = 0.1,
        embedding_dropout: float = 0.0,
        output_dropout: float = 0.0,
        fnn: str = "plain",
        context_clip: float | None = None,
        gating: Callable[[int, int], Gating] = Additive,
        normalization: Callable[[int], nn.Module] = nn.Identity,
        recurrence: Recurrence = REFERENCE,
        initialization: Callable[["ContextModel"], None] = normal,
    ) -> None:
        super().__init__()
        faults = [
            *size_faults(
                vocabulary_size=vocabulary_size,
                embedding_dim=embedding_dim,
                context_dim=context_dim,
                hidden_dim=hidden_dim,
                num_layers=num_layers,
                max_length=max_length,
            ),
            *option_faults("positions", positions, POSITIONS),
            *dropout_faults(
                dropout=dropout, embedding_dropout=embedding_dropout, output_dropout=output_dropout
            ),
            *option_faults("fnn", fnn, FNNS),
        ]
        if context_clip is not None and not context_clip > 0:
            faults.append(f"model.context_clip={context_clip} must be above 0, or null for none")
        raise_faults(faults)

        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.recurrence = recurrence
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.positions = (
            LearnedPositions(max_length, embedding_dim) if positions == "learned" else None
        )
        self.cell = ContextCell(
            embedding_dim,
            context_dim,
            hidden_dim,
            FNNS[fnn](hidden_dim, num_layers),
            gating(hidden_dim, context_dim),
            normalization(context_dim),
            context_clip,
            dropout,
        )
        self.output_dropout = nn.Dropout(output_dropout)
        self.output = nn.Linear(hidden_dim, vocabulary_size)
        self.fnn = fnn
        initialization(self)

    def forward(
        self, tokens: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Read a chunk, as `LanguageModel` says."""
        masks = DropoutMasks.draw(self.cell, tokens)
        rollout, state = self._read(self.recurrence, tokens, state, reset, masks)
        return self._logits(rollout), state

    def _logits(self, rollout: Rollout) -> Tensor:
        logits_BTV: Tensor = self.output(self.output_dropout(rollout.hidden_BTH))
        return logits_BTV

    def score(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `LanguageModel` says; `recurrence.recompute` keeps only the contexts.

        Everything else, logits included, is computed again in the backward pass, a block at a time.
        """
        if not (self.recurrence.recompute and torch.is_grad_enabled()):
            return super().score(tokens, targets)
        masks = DropoutMasks.draw(self.cell, tokens)
        # A checkpoint has a backward pass only if one of its inputs needs a gradient.
        context_BC = self.embedding.weight.new_zeros(len(tokens), self.cell.context_dim)
        state = [context_BC.requires_grad_()]
        if self.positions is not None:
            state.append(tokens.new_zeros(len(tokens)))
        losses, corrects = [], []
        blocks = zip(tokens.split(MASK_BLOCK, 1), targets.split(MASK_BLOCK, 1), strict=True)
        for index, (tokens_BK, targets_BK) in enumerate(blocks):
            own = masks and masks.starting_at(index * MASK_BLOCK)
            loss_BK, correct_BK, *state = checkpoint(
                self._score_block,
                {},
                own,
                tokens_BK,
                targets_BK,
                *state,
                use_reentrant=True,
                # The cell's masks are drawn anew by their seed; these two draw for themselves.
                preserve_rng_state=self.embedding_dropout.p + self.output_dropout.p > 0,
            )
            losses.append(loss_BK)
            corrects.append(correct_BK)
        return torch.cat(losses, dim=1), torch.cat(corrects, dim=1)

    def _score_block(
        self,
        found: dict[str, Tensor],
        masks: DropoutMasks | None,
        tokens: Tensor,
        targets: Tensor,
        *state: Tensor,
    ) -> tuple[Tensor, ...]:
        """Score a block, the second time with the contexts that were found the first time."""
        given = state[0] if self.positions is None else state
        read = partial(self.recurrence, known_BTC=found.pop("contexts", None))
        rollout, after = self._read(read, tokens, given, None, masks)
        if not torch.is_grad_enabled():
            found["contexts"] = rollout.contexts_BTC
        scores = score_logits(self._logits(rollout), targets)
        return (*scores, *(after if isinstance(after, tuple) else (after,)))

    def trace(
        self, tokens: Tensor, state: State | None = None, intervene: Intervene | None = None
    ) -> Trace:
        """Read a chunk and tell all contexts and gates; made for looking, so always the plain loop.

        Args:
            tokens: token ids [B, T].
            state: what an earlier call returned; None starts afresh.
            intervene: `intervene(t, context_BC)` returns what the context after token t shall be
                instead: the next token reads it, and the trace holds it.
        """

        def recurrence(
            cell: ContextCell,
            embedded_BTE: Tensor,
            context_BC: Tensor,
            masks: DropoutMasks | None,
            pad_BT: Tensor | None,
            reset_BT: Tensor | None,
        ) -> Rollout:
            return REFERENCE(
                cell, embedded_BTE, context_BC, masks, pad_BT, reset_BT, intervene=intervene
            )

        masks = DropoutMasks.draw(self.cell, tokens)
        rollout, state = self._read(recurrence, tokens, state, None, masks)
        return Trace(self._logits(rollout), rollout.contexts_BTC, rollout.gates, state)

    def _read(
        self,
        recurrence: Callable[..., Rollout],
        tokens: Tensor,
        state: State | None,
        reset: Tensor | None,
        masks: DropoutMasks | None,
    ) -> tuple[Rollout, State]:
        embedded_BTE = self.embedding_dropout(self.embedding(tokens))
        pad_BT = tokens == PAD
        context_BC, position_B = self._unpack(state, embedded_BTE)
        if self.positions is not None:
            position_BT, position_B = token_positions(~pad_BT, position_B, reset)
            embedded_BTE = embedded_BTE + self.positions(position_BT, ~pad_BT)
        pad_or_none = None if surely(~pad_BT.any()) else pad_BT
        rollout = recurrence(self.cell, embedded_BTE, context_BC, masks, pad_or_none, reset)
        context_BC = rollout.contexts_BTC[:, -1]
        return rollout, context_BC if self.positions is None else (context_BC, position_B)

    def _unpack(self, state: State | None, embedded_BTE: Tensor) -> tuple[Tensor, Tensor]:
        batch_size = embedded_BTE.shape[0]
        position_B = torch.zeros(batch_size, dtype=torch.long, device=embedded_BTE.device)
        if state is None:
            return embedded_BTE.new_zeros(batch_size, self.cell.context_dim), position_B
        if isinstance(state, Tensor):
            return state, position_B
        context_BC, position_B = state
        return context_BC, position_B

    @property
    def description(self) -> str:
        """Such as `gated layernorm C512 H512 L9`, followed by what deviates from the summary's."""
        cell = self.cell
        words = [cell.gating.name]
        if not isinstance(cell.normalization, nn.Identity):
            words.append(type(cell.normalization).__name__.lower())
        words += [f"C{cell.context_dim}", f"H{cell.hidden_dim}", f"L{self.num_layers}"]
        if self.embedding.embedding_dim != USUAL_EMBEDDING_DIM:
            words.append(f"E{self.embedding.embedding_dim}")
        if cell.context_clip is not None:
            words.append(f"clip{cell.context_clip:g}")
        if self.positions is not None:
            words.append("positions")
        if self.fnn != "plain":
            words.append(self.fnn)
        return " ".join(words)

    def state_bytes(self, num_tokens: int) -> int:
        """Bytes of one sequence's state, the same after any number of tokens."""
        position = 0 if self.positions is None else torch.long.itemsize
        return self.cell.context_dim * self.embedding.weight.element_size() + position
