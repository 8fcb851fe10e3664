"""Ways to set a fresh model's weights."""

import math

from torch import nn

from newllm.models.fnn import PlainFNN, ResidualFNN
from newllm.models.torch_rnn import TorchRNN

UNNORMALIZED = 10.0  # undoes the default output_gain


def normal(model: nn.Module, std: float = 0.02) -> None:
    """Linear and Embedding weights N(0, std) and biases 0, as in the summary.

    The signal vanishes in a deep stack of plain ReLU layers. Other modules (LayerNorm,
    torch.nn.LSTM, torch.nn.GRU) keep torch's defaults.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _draw(module, std)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)


def variance_preserving(
    model: nn.Module,
    embedding_std: float = 1.0,
    output_gain: float = 0.1,
    base_fan_in: int | None = None,
) -> None:
    """Weights that keep the variance of the signal at any depth, and biases 0.

    A Linear behind a ReLU in the FNN gets N(0, 2 / fan_in) (He et al. 2015), divided by the number
    of blocks in a residual network. Any other Linear gets N(0, 1 / fan_in), and so do the input
    weights of torch's recurrent networks, whose recurrent weights are orthogonal for each gate
    (Saxe et al. 2014, arXiv 1312.6120). Other modules keep torch's defaults.

    Args:
        model: a `LanguageModel`, changed in place.
        embedding_std: standard deviation of embedding tables; 1 is that of a normalized context.
        output_gain: scale of the logits; small, so that training starts near the uniform
            distribution. Above torch's recurrent networks, whose hidden states are small and not
            normalized, the weights are `UNNORMALIZED` times as large, since even smaller logits
            would slow the start of training down.
        base_fan_in: if given, the scale of the logits falls with the width of the output layer, in
            proportion to the root of this over the width, as `OptimizerFactory` assumes.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _draw(module, 1 / math.sqrt(module.in_features))
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=embedding_std)
        elif isinstance(module, nn.RNNBase):
            _draw_recurrent(module)
    for module in model.modules():
        if isinstance(module, PlainFNN | ResidualFNN):
            num_blocks = len(module.layers) if isinstance(module, ResidualFNN) else 1
            for linear in module.layers:
                assert isinstance(linear, nn.Linear)
                _draw(linear, math.sqrt(2 / (linear.in_features * num_blocks)))
    output = model.get_submodule("output")
    assert isinstance(output, nn.Linear)
    layers = getattr(model, "layers", ())
    if layers and isinstance(layers[-1], TorchRNN):
        output_gain *= UNNORMALIZED
    if base_fan_in is not None:
        output_gain *= math.sqrt(base_fan_in / output.in_features)
    _draw(output, output_gain / math.sqrt(output.in_features))


def _draw(linear: nn.Linear, std: float) -> None:
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _draw_recurrent(network: nn.RNNBase) -> None:
    for name, weight in network.named_parameters():
        if name.startswith("weight_ih"):
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))
        elif name.startswith("weight_hh"):
            for gate in weight.detach().split(network.hidden_size):
                nn.init.orthogonal_(gate)
        else:
            nn.init.zeros_(weight)
