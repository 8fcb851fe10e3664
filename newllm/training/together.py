"""Runs of one architecture that score their batches together, in one pass of an ensemble.

Shapes: B batch, T time (tokens).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from newllm.models.ensemble import Ensemble, ScoreInputs, Scores, obstacle
from newllm.models.ensemble_dropout import OwnDropout, OwnMasks
from newllm.models.language_model import LanguageModel
from newllm.models.layer import State
from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.native.weights import has_native_code
from newllm.training.turns import Member

TOLERANCE, AUTOCAST_TOLERANCE = 1e-3, 0.05  # of a gradient, relative to its norm
MOST_ENSEMBLES = 3  # whose weights and code are kept
Gradients = list[Tensor | None]


@dataclass(frozen=True)
class Request:
    """A batch that a run waits to have scored."""

    model: LanguageModel
    given: ScoreInputs
    kind: Any  # of what can be computed together


@dataclass(frozen=True)
class Answer:
    """What a run gets: scores, and the gradients of the sum of its losses, by weight."""

    scores: Scores
    gradients: Gradients | None


class Together:
    """Computes what the runs of `Turns` wait for.

    The first passes are compared with those of each model alone. If they differ, or a pass fails,
    every model is computed alone from then on.
    """

    def __init__(self) -> None:
        self._ensembles: list[Ensemble] = []  # the latest last
        self._checked: set[Any] = set()
        self._gave_up = False

    def answer(self, members: Sequence[Member]) -> None:
        """Answer requests of the same kind; with None if each model is to be computed alone."""
        answers: Sequence[Answer | None] = [None] * len(members)
        if len(members) > 1 and not self._gave_up:
            before = [member.numbers for member in members]
            try:
                answers = self._computed(members)
            except Exception as error:  # memory, or a layer of any kind that treats rows unlike
                for member, numbers in zip(members, before, strict=True):
                    member.numbers = numbers
                self._give_up(error)
        for member, answer in zip(members, answers, strict=True):
            member.give(answer)

    def _give_up(self, error: Exception) -> None:
        self._gave_up, self._ensembles = True, []
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"seeds_at_once: trained one after another from here; {reason}", file=sys.stderr)

    def _computed(self, members: Sequence[Member]) -> list[Answer]:
        requests = [member.request for member in members]
        ensemble = self._ensemble_of([request.model for request in requests])
        if (kind := requests[0].kind) not in self._checked:
            _check(ensemble, members)
            self._checked.add(kind)
        return _pass(ensemble, members)

    def _ensemble_of(self, models: Sequence[LanguageModel]) -> Ensemble:
        """An ensemble with the weights of some models; the latest few are kept.

        Runs that were resumed at different steps may train and validate in turn.
        """
        known = [each for each in self._ensembles if each.models == models]
        others = [each for each in self._ensembles if each.models != models]
        self._ensembles = others[1 - MOST_ENSEMBLES :]
        ensemble = known[0] if known else Ensemble(models)
        ensemble.take_weights()
        self._ensembles.append(ensemble)
        return ensemble


def _check(ensemble: Ensemble, members: Sequence[Member]) -> None:
    """Compare a pass with those of each model alone; no random number is used up.

    Raises:
        ValueError: they differ.
    """
    numbers = [member.numbers for member in members]
    found = _pass(ensemble, members)  # first, since it leaves the models as they are
    after = [member.numbers["torch"] for member in members]
    for member, states in zip(members, numbers, strict=True):
        member.numbers = states
    expected = [_answer_alone(member) for member in members]
    is_alike = all(map(_is_alike, found, expected)) and all(
        torch.equal(member.numbers["torch"], state)
        for member, state in zip(members, after, strict=True)
    )
    for member, states in zip(members, numbers, strict=True):
        member.numbers = states
    if not is_alike:
        raise ValueError("the models give other values together than alone")


def _pass(ensemble: Ensemble, members: Sequence[Member]) -> list[Answer]:
    """Score the batches of all members, with gradients if they are enabled."""
    given = [member.request.given for member in members]
    scores = ensemble.score(given, [member.own_numbers for member in members])
    if not torch.is_grad_enabled():
        return [Answer(own, None) for own in scores]
    # No loss depends on the weights of another model.
    total = torch.stack([own.loss_BT.sum() for own in scores]).sum()
    learned = [stack for stack in ensemble.stacks if stack.requires_grad]
    gradients = iter(torch.autograd.grad(total, learned, allow_unused=True))
    stacks = [next(gradients) if stack.requires_grad else None for stack in ensemble.stacks]
    return [
        Answer(_detached(own), [None if stack is None else stack[number] for stack in stacks])
        for number, own in enumerate(scores)
    ]


def _answer_alone(member: Member) -> Answer:
    """What a model gives by itself."""
    model, given = member.request.model, member.request.given
    on_cpu = given.tokens_BT.is_cpu
    with member.own_numbers():
        if on_cpu or not model.training:
            scores = Scores(*model.score(*given))
        else:  # fused attention of a GPU draws masks that cannot be had otherwise
            with OwnDropout(OwnMasks([tuple(given.tokens_BT.shape)], [member.own_numbers])):
                scores = Scores(*model.score(*given))
    if not torch.is_grad_enabled():
        return Answer(scores, None)
    weights = list(model.parameters())
    learned = [weight for weight in weights if weight.requires_grad]
    gradients = iter(torch.autograd.grad(scores.loss_BT.sum(), learned, allow_unused=True))
    return Answer(
        _detached(scores), [next(gradients) if weight.requires_grad else None for weight in weights]
    )


def _detached(scores: Scores) -> Scores:
    state = tuple(part.detach() for part in scores.state)
    return Scores(scores.loss_BT.detach(), scores.correct_BT, state)


def _is_alike(one: Answer, other: Answer) -> bool:
    device = one.scores.loss_BT.device.type
    tolerance = AUTOCAST_TOLERANCE if torch.is_autocast_enabled(device) else TOLERANCE
    pairs = [
        (one.scores.loss_BT, other.scores.loss_BT),
        *zip(one.gradients or (), other.gradients or (), strict=True),
    ]
    differences, sizes = [], []
    for found, expected in pairs:
        if (found is None) != (expected is None):
            return False
        if found is not None and expected is not None:
            differences.append((found - expected).double().norm())
            sizes.append(expected.double().norm())
    difference, size = (float(torch.stack(norms).norm()) for norms in (differences, sizes))
    return difference <= tolerance * size or not math.isfinite(size)


class KnownGradients(torch.autograd.Function):
    """Losses of a batch whose gradients are known already, if all losses count alike."""

    @staticmethod
    def forward(ctx: Any, loss_BT: Tensor, gradients: Gradients, *weights: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss_BT

    @staticmethod
    def backward(ctx: Any, grad_BT: Tensor) -> tuple[Any, ...]:
        strides = zip(grad_BT.shape, grad_BT.stride(), strict=True)
        assert not any(stride for size, stride in strides if size > 1), "not the sum of the losses"
        factor, gradients = grad_BT.flatten()[0], ctx.gradients
        del ctx.gradients
        known = [gradient for gradient in gradients if gradient is not None]
        scaled = iter(torch._foreach_mul(known, factor))
        return None, None, *(None if each is None else next(scaled) for each in gradients)


class RunScorer:
    """Scores the batches of a run together with those of the other runs of its group.

    Args:
        model: of the run.
        member: the thread of the run.
    """

    def __init__(self, model: LanguageModel, member: Member) -> None:
        self._model, self._member = model, member

    def __deepcopy__(self, memo: dict[int, Any]) -> RunScorer:
        """Itself: a callback that averages weights copies the module, and this is of the run."""
        return self

    def score(
        self,
        tokens: Tensor,
        targets: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
        padding_matters: bool = True,
    ) -> tuple[Tensor, Tensor, State]:
        """As `LanguageModel.score`; gradients are those of a multiple of the sum of all losses."""
        given = ScoreInputs(tokens, targets, state, reset, padding_matters)
        has_others = len(self._member.turns.unfinished) > 1
        answer = self._member.ask(self._request(given)) if has_others else None
        if answer is None:
            return self._model.score(*given)
        scores, loss_BT = answer.scores, answer.scores.loss_BT
        if answer.gradients is not None:
            loss_BT = KnownGradients.apply(loss_BT, answer.gradients, *self._model.parameters())
        return loss_BT, scores.correct_BT, scores.state

    def _request(self, given: ScoreInputs) -> Request:
        device = given.tokens_BT.device.type
        mode = (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        )
        kind = self._model.training, *mode, given.form
        return Request(self._model, given, kind)


def reason_to_be_alone(model: LanguageModel, device: torch.device) -> str | None:
    """Why a model is computed alone; None if it is faster, and possible, with others.

    To be asked where autocast is as it will be.
    """
    on_cpu = device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if on_cpu and any(
        isinstance(layer.recurrence, Fused) and has_native_code(layer.cell)
        for layer in model.recurrent_layers
    ):
        return "on a CPU, native code reads the weights of one model, and is faster"
    return obstacle(model)
