"""Whether the signal survives eleven layers."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from small_models import context_model, rnn_model, transformer
from torch import Tensor, nn

from newllm.models.cell import ContextCell
from newllm.models.fnn import PlainFNN
from newllm.models.gating import LSTMGating
from newllm.models.initialization import normal, variance_preserving
from newllm.models.language_model import LanguageModel
from newllm.models.torch_rnn import GRU, LSTM, Elman, TorchRNN

make = partial(
    context_model,
    300,
    embedding_dim=256,
    context_dim=256,
    hidden_dim=256,
    num_layers=11,
    gating=LSTMGating,
    normalization=nn.LayerNorm,
)


def scales(initialization: Callable[[LanguageModel], None], fnn: str) -> tuple[list[float], Tensor]:
    """Standard deviation before each ReLU or LayerNorm on the way to the heads, and the logits."""
    torch.manual_seed(0)
    model = make(initialization=initialization, fnn=fnn).eval()
    seen: list[float] = []
    (layer,) = model.recurrent_layers
    cell = layer.cell
    assert isinstance(cell, ContextCell)
    network = cell.fnn
    if isinstance(network, PlainFNN):
        for linear in (cell.input, *network.layers):
            linear.register_forward_hook(lambda _, inputs, output: seen.append(float(output.std())))
    else:
        for norm in (*network.norms, network.final_norm):
            norm.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].std())))
    with torch.no_grad():
        logits, _ = model(torch.randint(1, 300, (16, 1)))
    return seen, logits


@pytest.mark.parametrize("fnn", ["plain", "residual"])
def test_variance_preserving_keeps_the_scale(fnn: str) -> None:
    seen, logits = scales(variance_preserving, fnn)
    assert len(seen) == 11
    assert all(0.4 < scale < 2.5 for scale in seen), seen
    assert 0.02 < float(logits.std()) < 0.3


def test_normal_loses_the_signal_in_plain_layers() -> None:
    seen, logits = scales(normal, "plain")
    assert seen[-1] / seen[0] < 1e-5
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(1, 300, (16,)))
    assert float(loss) == pytest.approx(float(torch.tensor(300.0).log()), abs=1e-4)


@pytest.mark.parametrize(
    "make_model",
    [make, partial(transformer, 300, 64), partial(rnn_model, 300, embedding_dim=64, hidden_dim=64)],
    ids=["context", "transformer", "lstm"],
)
def test_normal_touches_linear_and_embedding_alone(
    make_model: Callable[..., LanguageModel],
) -> None:
    torch.manual_seed(0)
    model = make_model(initialization=normal).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            assert float(module.weight.std()) == pytest.approx(0.02, rel=0.05)
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
        if isinstance(module, nn.LSTM):
            bound = module.hidden_size**-0.5
            assert float(module.all_weights[0][1].abs().max()) == pytest.approx(bound, rel=0.01)


@pytest.mark.parametrize("layer", [LSTM, GRU, Elman])
def test_variance_preserving_draws_every_gate_of_a_recurrent_network(layer: type[TorchRNN]) -> None:
    torch.manual_seed(0)
    model = rnn_model(
        300, embedding_dim=64, hidden_dim=48, layer=layer, initialization=variance_preserving
    )
    for network in (module for module in model.modules() if isinstance(module, nn.RNNBase)):
        for name, weight in network.named_parameters():
            if name.startswith("weight_ih"):
                fan_in = weight.shape[1]
                assert float(weight.detach().std()) == pytest.approx(fan_in**-0.5, rel=0.05)
            elif name.startswith("weight_hh"):
                for gate in weight.detach().split(48):
                    torch.testing.assert_close(gate @ gate.T, torch.eye(48), atol=1e-4, rtol=0)
            else:
                assert not weight.any()
    logits, _ = model(torch.randint(1, 300, (16, 20)))
    assert 0.03 < float(logits.detach().std()) < 1
