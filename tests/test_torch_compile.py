"""Every model under torch.compile and torch.export: what it says there is what it says here.

Shapes: B batch, T time (tokens), S cached tokens.
"""

from typing import Any

import pytest
import torch
from small_models import context_model, transformer
from test_models import MODELS, PADDED, RESETS, V, build, gated, random_tokens
from torch import Tensor
from torch.export import Dim, export
from torch.utils._pytree import tree_map

from newllm.models.language_model import LanguageModel
from newllm.models.layer import State
from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.reference import Recurrence, Reference

BATCH = Dim("batch", min=1, max=64)
pytestmark = [
    # Dynamo looks at the gradients of what crosses a break of its graph.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    # torch.nn.LSTM and its like keep a list of their weights.
    pytest.mark.filterwarnings("ignore:The tensor attributes self.*_flat_weights"),
]


def loss_and_gradients(model: LanguageModel, call: Any) -> list[Tensor]:
    torch.manual_seed(2)  # of the dropout
    logits_BTV, _ = call(PADDED[:4])
    loss = logits_BTV[PADDED[:4] > 0].square().mean()
    loss.backward()
    found = [loss.detach(), *(weight.grad.clone() for weight in model.parameters())]  # type: ignore[union-attr]
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", MODELS)
def test_compiled_losses_and_gradients_are_those_of_the_module(name: str) -> None:
    torch.compiler.reset()
    model = build(name).train()
    expected = loss_and_gradients(model, model)
    found = loss_and_gradients(model, torch.compile(model, backend="eager"))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("recurrence", [Fused(), Reference()])
def test_compiled_scores_are_those_of_the_module(recurrence: Recurrence, recompute: bool) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    model = gated(recurrence=recurrence, recompute=recompute).train()
    tokens, targets = PADDED[:4], PADDED[:4].roll(-1, dims=1)

    def results(score: Any) -> list[Tensor]:
        torch.manual_seed(2)
        loss_BT, _, _ = score(tokens, targets)
        loss_BT.sum().backward()
        found = [loss_BT.detach(), *(weight.grad.clone() for weight in model.parameters())]
        model.zero_grad()
        return found

    expected = results(model.score)
    torch.testing.assert_close(results(torch.compile(model.score, backend="eager")), expected)


# Inductor's own modules use what torch has deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_inductor_changes_no_loss_either(name: str) -> None:
    torch.compiler.reset()
    model = build(name).train()
    if name.startswith(("transformer", "hybrid", "mingru", "linear")):
        model.eval()  # inductor draws other masks than F.dropout
    for dropout in (module for module in model.modules() if isinstance(module, torch.nn.Dropout)):
        dropout.p = 0.0
    expected = loss_and_gradients(model, model)
    found = loss_and_gradients(model, torch.compile(model))
    torch.testing.assert_close(found, expected)


def example_state(model: LanguageModel, tokens: Tensor) -> Any:
    """A state after some tokens. Copied, for export looks at what a view is a view of."""
    _, state = model(tokens)
    return tree_map(torch.clone, state)


def shapes_of_state(model: LanguageModel, state: State) -> Any:
    """Any batch, and any size of what grows with the number of tokens."""
    initial = model.initial_state(len(state[0]))
    return tuple(
        {0: BATCH}
        | {dim: Dim.AUTO for dim in range(1, part.dim()) if part.shape[dim] != empty.shape[dim]}
        for part, empty in zip(state, initial, strict=True)
    )


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_reads_sequences_of_any_batch(name: str) -> None:
    model = build(name)
    program = export(
        model,
        (PADDED[:3], None, RESETS[:3]),
        dynamic_shapes=({0: BATCH}, None, {0: BATCH}),
    )
    logits_BTV, state = model(PADDED, None, RESETS)
    found_BTV, found_state = program.module()(PADDED, None, RESETS)
    torch.testing.assert_close(found_BTV[PADDED > 0], logits_BTV[PADDED > 0])
    # A state may hold tokens that no row sees any more, so its effect is compared.
    probe = random_tokens(len(PADDED), 1)
    torch.testing.assert_close(model(probe, found_state)[0], model(probe, state)[0])


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_step_reads_token_by_token(name: str) -> None:
    model = build(name)
    tokens = random_tokens(2, 5)
    state = example_state(model, tokens[:, :4])
    shapes = ({0: BATCH}, shapes_of_state(model, state))
    step = export(model, (tokens[:, 4:], state), dynamic_shapes=shapes).module()
    _, state = model(PADDED[:, :4])
    own_state = state
    for t in range(4, PADDED.shape[1]):
        expected, state = model(PADDED[:, t : t + 1], state)
        found, own_state = step(PADDED[:, t : t + 1], own_state)
        torch.testing.assert_close(found, expected)
    # An exported step may keep room for tokens that it does not see, so the effect is compared.
    probe = random_tokens(len(PADDED), 1)
    torch.testing.assert_close(model(probe, own_state)[0], model(probe, state)[0])


@pytest.mark.parametrize("family", [context_model, transformer])
def test_an_exported_model_still_refuses_more_tokens_than_positions(family: Any) -> None:
    model = family(V, positions="learned", max_length=4).eval()
    tokens = torch.randint(4, V, (2, 1))
    state = example_state(model, random_tokens(2, 3))
    shapes = ({0: BATCH}, shapes_of_state(model, state))
    step = export(model, (tokens, state), dynamic_shapes=shapes).module()
    _, state = step(tokens, state)
    with pytest.raises(RuntimeError):
        step(tokens, state)
