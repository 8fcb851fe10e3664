"""Ways to set a fresh model's weights."""

import math

from torch import nn

from newllm.models.fnn import PlainFNN, ResidualFNN


def normal(model: nn.Module, std: float = 0.02) -> None:
    """All Linear and Embedding weights N(0, std), biases 0: the summary's choice.

    Through a deep stack of plain ReLU layers this shrinks the signal to nothing. Whatever is
    neither Linear nor Embedding (LayerNorm, torch.nn.LSTM, torch.nn.GRU) keeps torch's defaults.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _draw(module, std)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)


def variance_preserving(
    model: nn.Module, embedding_std: float = 1.0, output_gain: float = 0.1
) -> None:
    """Weights that keep the scale of the signal at any depth, biases 0.

    A Linear of the FNN that reads ReLUs gets N(0, 2 / fan_in), since ReLU halves the second moment
    (He et al. 2015), and in a residual network 1 / blocks of that variance, so that all blocks
    together add as much as the projection brings. Any other Linear gets N(0, 1 / fan_in).
    Embeddings get the scale of a normalized context, to which they are joined. Modules of other
    kinds keep torch's defaults.

    Args:
        model: a `LanguageModel`, changed in place.
        embedding_std: standard deviation of every embedding table.
        output_gain: scale of the logits against their inputs; small, so that training starts near
            the uniform distribution.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _draw(module, 1 / math.sqrt(module.in_features))
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=embedding_std)
    for module in model.modules():
        if isinstance(module, PlainFNN | ResidualFNN):
            num_blocks = len(module.layers) if isinstance(module, ResidualFNN) else 1
            for linear in module.layers:
                assert isinstance(linear, nn.Linear)
                _draw(linear, math.sqrt(2 / (linear.in_features * num_blocks)))
    output = model.get_submodule("output")
    assert isinstance(output, nn.Linear)
    _draw(output, output_gain / math.sqrt(output.in_features))


def _draw(linear: nn.Linear, std: float) -> None:
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
