"""Models computed together give what each gives alone: losses, hits, states, gradients, masks."""

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from small_models import (
    context_attention_model,
    context_model,
    delta_model,
    hybrid,
    linear_delta_model,
    mingru_model,
    rnn_model,
    transformer,
)
from torch import nn

from newllm.data.batch import IGNORE
from newllm.data.tokenizer import PAD
from newllm.models.ensemble import Ensemble, ScoreInputs, obstacle
from newllm.models.ensemble_dropout import OwnNumbers, Unstackable
from newllm.models.gating import Additive, LSTMGating
from newllm.models.language_model import LanguageModel
from newllm.models.local_attention import LocalAttention
from newllm.models.recurrence.graphs import Graphs
from newllm.models.recurrence.parallel import Parallel
from newllm.models.recurrence.reference import MASK_BLOCK, Reference

VOCABULARY, NUM_MODELS = 20, 3
DROPOUT = {"dropout": 0.3, "embedding_dropout": 0.3, "output_dropout": 0.2}
gated = partial(
    context_model, gating=LSTMGating, normalization=nn.LayerNorm, fnn="residual", **DROPOUT
)
MODELS: dict[str, Callable[[int], LanguageModel]] = {
    "context": partial(context_model, **DROPOUT),
    "gated": gated,
    "gated, segments": partial(gated, recurrence=Graphs()),
    "delta": partial(delta_model, recurrence=Reference(), **DROPOUT),
    "transformer": partial(transformer, max_length=2 * MASK_BLOCK, **DROPOUT),
    "rotary": partial(transformer, positions="rotary", **DROPOUT),
    "leaky": partial(transformer, leaky=True, max_length=2 * MASK_BLOCK, dropout=0.3),
    "local attention": partial(hybrid, attention=partial(LocalAttention, window=3)),
    "mingru": partial(mingru_model, **DROPOUT),
}


def models_of(name: str) -> list[LanguageModel]:
    models = []
    for seed in range(NUM_MODELS):
        torch.manual_seed(seed)
        models.append(MODELS[name](VOCABULARY).double())
    return models


def given_to(number: int, num_tokens: int) -> ScoreInputs:
    """Rows that are fewer, and longer, for later models; padding trails."""
    generator = torch.Generator().manual_seed(number)
    shape = 4 - number, num_tokens + 2 * number
    tokens, targets = (torch.randint(5, VOCABULARY, shape, generator=generator) for _ in range(2))
    length_B = torch.randint(2, shape[1] + 1, shape[:1], generator=generator)
    pad_BT = torch.arange(shape[1]) >= length_B[:, None]
    return ScoreInputs(tokens.masked_fill(pad_BT, PAD), targets.masked_fill(pad_BT, IGNORE))


class Numbers:
    """Random numbers of a model's own."""

    def __init__(self, seed: int) -> None:
        self.state = torch.Generator().manual_seed(seed).get_state()

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.state)
            yield
            self.state = torch.get_rng_state()


def check(models: list[LanguageModel], given: list[ScoreInputs]) -> None:
    """Compare a pass of all with one of each, with gradients."""
    alone, together = ([Numbers(seed) for seed in range(NUM_MODELS)] for _ in range(2))
    expected = []
    for model, each, numbers in zip(models, given, alone, strict=True):
        with numbers.own():
            loss_BT, correct_BT, state = model.score(*each)
        weights = list(model.parameters())
        gradients = torch.autograd.grad(loss_BT.sum(), weights, allow_unused=True)
        expected.append((loss_BT, correct_BT, state, gradients))
    ensemble = Ensemble(models)
    own: list[OwnNumbers] = [numbers.own for numbers in together]
    found = ensemble.score(given, own)
    total = torch.stack([scores.loss_BT.sum() for scores in found]).sum()
    stacks = torch.autograd.grad(total, ensemble.stacks, allow_unused=True)
    assert all(torch.equal(*(n.state for n in pair)) for pair in zip(alone, together, strict=True))
    for number, (loss_BT, correct_BT, state, gradients) in enumerate(expected):
        scored_BT = given[number].targets_BT != IGNORE
        scores = found[number]
        torch.testing.assert_close(scores.loss_BT[scored_BT], loss_BT[scored_BT])
        assert torch.equal(scores.correct_BT[scored_BT], correct_BT[scored_BT])
        for one, other in zip(scores.state, state, strict=True):
            if one.shape == other.shape:  # caches of attention hold more padding
                torch.testing.assert_close(one, other)
        for stack, gradient in zip(stacks, gradients, strict=True):
            assert (stack is None) == (gradient is None)
            if stack is not None:
                torch.testing.assert_close(stack[number], gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_together_as_alone(name: str) -> None:
    check(models_of(name), [given_to(number, num_tokens=7) for number in range(NUM_MODELS)])


@pytest.mark.parametrize("name", ["gated", "delta", "mingru", "local attention"])
def test_with_a_carried_state_and_resets(name: str) -> None:
    models = models_of(name)
    given = []
    for number, model in enumerate(models):
        first, second = given_to(number, num_tokens=5), given_to(number, num_tokens=MASK_BLOCK)
        with torch.no_grad():
            state = model.eval().score(*first)[2]
        model.train()
        reset_BT = torch.rand(second.tokens_BT.shape) < 0.1
        given.append(second._replace(state=state, reset_BT=reset_BT))
    check(models, given)


def test_the_weights_of_models_are_views() -> None:
    """So an optimizer changes the ensemble, and what replaces a weight is noticed."""
    models = models_of("gated")
    before = [[weight.clone() for weight in model.parameters()] for model in models]
    ensemble = Ensemble(models)
    for model, weights in zip(models, before, strict=True):
        assert all(map(torch.equal, model.parameters(), weights))
    optimizer = torch.optim.Adam(models[1].parameters(), lr=0.1, fused=True)
    for weight in models[1].parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    for stack, first, second in zip(ensemble.stacks, before[0], before[1], strict=True):
        assert torch.equal(stack[0], first)
        torch.testing.assert_close(stack[1], second - 0.1)
    # Another ensemble takes the weights as they are now, and gives them back as they are then.
    Ensemble(models[1:])
    with torch.no_grad():
        next(models[2].parameters()).add_(1)
    expected = [[weight.clone() for weight in model.parameters()] for model in models]
    ensemble.take_weights()
    for number, (model, weights) in enumerate(zip(models, expected, strict=True)):
        for weight, stack, like in zip(model.parameters(), ensemble.stacks, weights, strict=True):
            assert torch.equal(weight, like)
            assert weight.data_ptr() == stack[number].data_ptr()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (rnn_model, r"layers.0.network \(LSTM\) holds weights of its own"),
        (linear_delta_model, "holds weights of its own"),
        (partial(context_model, recompute=True), "model.recompute=true"),
        (partial(context_model, recurrence=Parallel()), "recurrence=parallel orders rows by their"),
    ],
)
def test_why_a_model_stays_alone(make: Callable[[int], LanguageModel], reason: str) -> None:
    assert re.search(reason, obstacle(make(VOCABULARY)) or "none")


def test_shared_weights_and_hooks_are_obstacles() -> None:
    model = context_model(VOCABULARY, embedding_dim=10)
    assert obstacle(model) is None
    handle = model.output.register_forward_hook(lambda *_: None)
    assert obstacle(model) == "output (Linear) has hooks"
    handle.remove()
    model.output.weight = model.embedding.weight
    assert obstacle(model) == "parts of it share weights"


class Counting(Additive):
    """Counts its steps in a buffer or in a plain attribute."""

    count: torch.Tensor | int

    def forward(
        self, hidden_BH: torch.Tensor, context_BC: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.count += 1
        return super().forward(hidden_BH, context_BC)


@pytest.mark.parametrize("is_buffer", [True, False])
def test_what_a_pass_changes_is_refused(is_buffer: bool) -> None:
    models = [context_model(VOCABULARY, gating=Counting) for _ in range(NUM_MODELS)]
    for model in models:
        gating = model.get_submodule("layers.0.cell.gating")
        if is_buffer:
            gating.register_buffer("count", torch.zeros(()))
        else:
            gating.count = 0  # type: ignore[assignment]
    own: list[OwnNumbers] = [Numbers(seed).own for seed in range(NUM_MODELS)]
    with pytest.raises(Unstackable, match=r"^layers\.0\.cell\.gating\.count changes, which is no"):
        Ensemble(models).score([given_to(number, 7) for number in range(NUM_MODELS)], own)


def test_what_is_scheduled_is_noticed() -> None:
    models = models_of("context")
    ensemble = Ensemble(models)
    given = [given_to(number, 7) for number in range(NUM_MODELS)]
    own: list[OwnNumbers] = [Numbers(seed).own for seed in range(NUM_MODELS)]
    ensemble.score(given, own)
    models[1].embedding_dropout.p = 0.1
    with pytest.raises(Unstackable, match=r"^embedding_dropout\.p changes, which is no weight"):
        ensemble.score(given, own)


def test_models_of_other_shapes_are_refused() -> None:
    with pytest.raises(Unstackable, match="differ in shape"):
        Ensemble([context_model(VOCABULARY), context_model(VOCABULARY + 1)])


def test_weights_for_something_else_than_rows_are_refused() -> None:
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(context_attention_model(VOCABULARY))
    own: list[OwnNumbers] = [Numbers(seed).own for seed in range(2)]
    with pytest.raises(Unstackable, match=r"a part reads a tensor \[1, 1, 8\], not \[batch, ...\]"):
        Ensemble(models).score([given_to(number, 7) for number in range(2)], own)


def test_dropout_of_something_else_than_tokens_is_refused() -> None:
    class Other(nn.Dropout):
        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return super().forward(x_BTD.transpose(1, 2)).transpose(1, 2)

    models = models_of("context")
    for model in models:
        model.embedding_dropout = Other(0.5)
    own: list[OwnNumbers] = [Numbers(seed).own for seed in range(NUM_MODELS)]
    with pytest.raises(Unstackable, match=r"dropout of a tensor \[12, 6, 11\]"):
        Ensemble(models).score([given_to(number, 7) for number in range(NUM_MODELS)], own)
