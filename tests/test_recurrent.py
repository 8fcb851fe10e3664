"""The recurrent baselines: three ways to read, one result.

Shapes: B batch, T time (tokens), L layers, H hidden, V vocabulary.
"""

import pytest
import torch

from newllm.models.torch_rnn import ElmanModel, GRUModel, LSTMModel, RecurrentBaseline

V = 11
BASELINES = [LSTMModel, GRUModel, ElmanModel]


def make(model_class: type[RecurrentBaseline], num_layers: int = 2) -> RecurrentBaseline:
    torch.manual_seed(0)
    return model_class(V, 4, 6, num_layers).double().eval()


@pytest.mark.parametrize("model_class", BASELINES)
def test_equals_torch_network(model_class: type[RecurrentBaseline]) -> None:
    model = make(model_class)
    tokens = torch.randint(1, V, (3, 5))
    hidden_BTH, _ = model.network(model.embedding(tokens))
    assert torch.equal(model(tokens)[0], model.output(hidden_BTH))


@pytest.mark.parametrize("model_class", BASELINES)
@pytest.mark.parametrize(
    "tokens",
    [
        torch.tensor([[2, 5, 6, 3], [2, 7, 8, 3]]),
        torch.tensor([[2, 5, 3, 0], [2, 7, 8, 3]]),
    ],
    ids=["whole", "packed"],
)
def test_fast_paths_equal_the_stepwise_one(
    model_class: type[RecurrentBaseline], tokens: torch.Tensor
) -> None:
    model = make(model_class)
    _, start = model(torch.tensor([[4], [9]]))
    logits, state = model(tokens, start)
    no_reset = torch.zeros_like(tokens, dtype=torch.bool)
    stepwise, stepwise_state = model(tokens, start, no_reset)
    torch.testing.assert_close(logits[tokens != 0], stepwise[tokens != 0])
    for fast, slow in zip(state, stepwise_state, strict=True):
        assert fast.shape == (2, 2, 6)
        torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("model_class", BASELINES)
def test_one_layer_has_dropout_too(model_class: type[RecurrentBaseline]) -> None:
    model = make(model_class, num_layers=1).train()
    tokens = torch.randint(1, V, (3, 5))
    assert not torch.allclose(model(tokens)[0], model(tokens)[0])
