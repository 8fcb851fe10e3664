"""The use of the context of a recurrent layer, and its dynamics over time.

Losses are means over targets, in nats. `LanguageModel.trace` lets a function replace the context at
every step.

Shapes: B batch, T time (tokens), V classes, C context, N contexts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from newllm.data.batch import IGNORE, Batch, device_of, on_device_of
from newllm.data.batching import EvaluationBatches
from newllm.data.encoded import EncodedSplit
from newllm.data.tokenizer import PAD
from newllm.models.language_model import LanguageModel, score_logits
from newllm.statistics.iterations import iteration_errors

FROZEN_AFTER = (1, 2, 4, 8)
NUM_SENTENCES = 16  # with a Jacobian at every step
MAX_STEPS = 16
TINY = 1e-300  # replaces a zero whose logarithm is taken

Intervention = Callable[[int, Tensor], Tensor]
MakeIntervention = Callable[[LanguageModel, Batch], Intervention]


@dataclass(frozen=True)
class Frozen:
    """Loss of the targets after the first `after` tokens, with the context kept from there on."""

    after: int
    loss: float
    loss_intact: float


@dataclass(frozen=True)
class Ablations:
    """Losses of a split with the context replaced.

    Attributes:
        loss: of the intact model.
        zeroed: with a context of zeros, as at the start of a sentence.
        shuffled: with the context of another sentence at the same position; None for one sentence.
        frozen: with a context that no longer changes.
    """

    loss: float
    zeroed: float
    shuffled: float | None
    frozen: Sequence[Frozen]


@dataclass(frozen=True)
class Dynamics:
    """Dynamics of the context.

    Attributes:
        context_dim: C.
        effective_rank: exponential of the entropy of the normalized singular values of the centred
            contexts (Roy & Vetterli 2007); at most C.
        gradient_norms: of a target's loss by the context 0, 1, ... tokens before it.
        singular_value: largest of d context_t / d context_{t-1}, median over steps.
        singular_value_range: its 5th and 95th percentile.
        iteration_errors: of the contexts, all computed at once: `iterations.iteration_errors`.
        lyapunov_exponent: largest finite-time exponent, in nats per token: logarithm of the largest
            singular value of the product of a sentence's Jacobians, divided by its length; mean
            over sentences. Over few tokens it exceeds the limit of long times.
    """

    context_dim: int
    effective_rank: float
    gradient_norms: Sequence[float]
    singular_value: float
    singular_value_range: tuple[float, float]
    lyapunov_exponent: float
    iteration_errors: Sequence[float]


@torch.no_grad()
def ablate(model: LanguageModel, split: EncodedSplit) -> Ablations:
    """Losses of a split with the context replaced in several ways."""

    def loss(make: MakeIntervention, after: int = 0) -> float:
        return _loss(model, split, make, after)

    return Ablations(
        loss=loss(_leave),
        zeroed=loss(_zero),
        shuffled=loss(_swap) if len(split) > 1 else None,
        frozen=[
            Frozen(after, loss(_freeze(after), after), loss(_leave, after))
            for after in FROZEN_AFTER
            if after < int(split.num_positions_N.max())
        ],
    )


def _leave(model: LanguageModel, batch: Batch) -> Intervention:
    return lambda t, context_BC: context_BC


def _zero(model: LanguageModel, batch: Batch) -> Intervention:
    return lambda t, context_BC: torch.zeros_like(context_BC)


def _swap(model: LanguageModel, batch: Batch) -> Intervention:
    """The context of another sentence of the batch at the same position."""
    own_BTC = model.trace(batch.tokens_BT).contexts_BTC
    other_BTC = own_BTC.roll(max(1, len(own_BTC) // 2), 0)  # a batch is sorted by length
    return lambda t, context_BC: other_BTC[:, t]


def _freeze(after: int) -> MakeIntervention:
    """From then on the context after `after` tokens."""

    def make(model: LanguageModel, batch: Batch) -> Intervention:
        kept: list[Tensor] = []

        def intervene(t: int, context_BC: Tensor) -> Tensor:
            if t == after - 1:
                kept.append(context_BC)
            return kept[0] if t >= after else context_BC

        return intervene

    return make


def _loss(model: LanguageModel, split: EncodedSplit, make: MakeIntervention, after: int) -> float:
    """Mean loss of the targets after the first `after` ones of each sentence."""
    total, number = 0.0, 0
    for batch in on_device_of(model, EvaluationBatches(split)):
        trace = model.trace(batch.tokens_BT, intervene=make(model, batch))
        loss_BT, _ = score_logits(trace.logits_BTV, batch.targets_BT)
        total += loss_BT[:, after:].sum(dtype=torch.double).item()
        number += int(batch.scored_BT[:, after:].sum())
    return total / number


def dynamics(model: LanguageModel, split: EncodedSplit) -> Dynamics:
    """Rank, gradients and Jacobians on the first sentences of a split."""
    batch = split.batch(torch.arange(min(len(split), NUM_SENTENCES))).to(device_of(model))
    contexts_NC = _contexts(model, split)
    largest, exponents = _expansion(model, batch, contexts_NC.shape[1])
    low, middle, high = np.percentile(largest, (5, 50, 95)).tolist()
    return Dynamics(
        context_dim=contexts_NC.shape[1],
        effective_rank=effective_rank(contexts_NC),
        gradient_norms=gradient_norms(model, batch),
        singular_value=middle,
        singular_value_range=(low, high),
        lyapunov_exponent=float(np.mean(exponents)),
        iteration_errors=iteration_errors(model, batch.tokens_BT[:, :MAX_STEPS]),
    )


@torch.no_grad()
def _contexts(model: LanguageModel, split: EncodedSplit) -> Tensor:
    """The contexts after all tokens of a split, [N, C]."""
    return torch.cat(
        [
            model.trace(batch.tokens_BT).contexts_BTC[batch.tokens_BT != PAD]
            for batch in on_device_of(model, EvaluationBatches(split))
        ]
    )


def effective_rank(contexts_NC: Tensor) -> float:
    """The number of directions in which contexts spread, a real number from 1 to C."""
    centred_NC = contexts_NC.double() - contexts_NC.double().mean(0)
    values_C = torch.linalg.svdvals(centred_NC)
    if not values_C.any():
        return 1.0  # one point
    shares_C = values_C / values_C.sum()
    return float(torch.exp(torch.special.entr(shares_C).sum()))


def gradient_norms(model: LanguageModel, batch: Batch) -> list[float]:
    """Mean norm of d loss_t / d context_{t-d} over sentences and targets, by d = 0, 1, ...

    d = 0 is the context that the prediction reads.
    """
    seen: list[Tensor] = []

    def watch(t: int, context_BC: Tensor) -> Tensor:
        seen.append(context_BC)
        return context_BC

    tokens_BT, targets_BT = batch.tokens_BT[:, :MAX_STEPS], batch.targets_BT[:, :MAX_STEPS]
    with torch.enable_grad():
        loss_BT, _ = score_logits(model.trace(tokens_BT, None, watch).logits_BTV, targets_BT)
    norms: dict[int, list[float]] = defaultdict(list)
    for t in range(1, loss_BT.shape[1]):
        real_B = targets_BT[:, t] != IGNORE
        if not real_B.any():
            break
        # Sentences are independent, so one backward pass serves all of them.
        gradients = torch.autograd.grad(loss_BT[:, t].sum(), seen[:t], retain_graph=True)
        for step, gradient_BC in enumerate(gradients):
            norms[t - 1 - step] += gradient_BC[real_B].norm(dim=1).tolist()
    return [float(np.mean(norms[distance])) for distance in sorted(norms)]


def _expansion(
    model: LanguageModel, batch: Batch, context_dim: int
) -> tuple[list[float], list[float]]:
    """Largest singular value of every step's Jacobian; Lyapunov exponent of every sentence."""
    tokens_BT = batch.tokens_BT[:, :MAX_STEPS]
    largest: list[float] = []
    # The product of `MAX_STEPS` Jacobians stays within the range of double precision.
    identity_CC = torch.eye(context_dim, device=device_of(model), dtype=torch.double)
    product_BCC = identity_CC.repeat(len(tokens_BT), 1, 1)
    for t, jacobian_BCC in enumerate(jacobians(model, tokens_BT), start=1):
        real_B = tokens_BT[:, t] != PAD
        largest += torch.linalg.matrix_norm(jacobian_BCC[real_B], 2).tolist()
        product_BCC[real_B] = jacobian_BCC[real_B].double() @ product_BCC[real_B]
    num_steps_B = (tokens_BT[:, 1:] != PAD).sum(1)
    logs_B = torch.linalg.matrix_norm(product_BCC, 2).clamp(min=TINY).log()
    has_steps_B = num_steps_B > 0
    return largest, (logs_B[has_steps_B] / num_steps_B[has_steps_B]).tolist()


def jacobians(model: LanguageModel, tokens_BT: Tensor) -> Iterator[Tensor]:
    """d context_t / d context_{t-1}, [B, C, C], at the second, third, ... token of sentences."""
    computed: list[Tensor] = []
    read: list[Tensor] = []

    def cut(t: int, context_BC: Tensor) -> Tensor:
        computed.append(context_BC)
        read.append(context_BC.detach().requires_grad_())
        return read[-1]

    with torch.enable_grad():
        model.trace(tokens_BT, intervene=cut)
    for before_BC, after_BC in zip(read, computed[1:], strict=False):
        batch_size, context_dim = after_BC.shape
        rows_CBC = torch.eye(context_dim).to(after_BC)[:, None].expand(-1, batch_size, -1)
        (jacobian_CBC,) = torch.autograd.grad(after_BC, before_BC, rows_CBC, is_grads_batched=True)
        yield jacobian_CBC.transpose(0, 1)
