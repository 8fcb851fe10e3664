"""The ten parameter counts that the summary publishes, each exact."""

from functools import partial

import pytest
from small_models import context_model, transformer
from torch import nn

from newllm.models.gating import LSTMGating

# What the summary uses where nothing else is said.
SIZES = {"context_dim": 512, "hidden_dim": 512, "num_layers": 9}
plain = partial(context_model, 1000, 256, **SIZES)
additive = partial(plain, positions="learned")
normalized = partial(additive, normalization=nn.LayerNorm)
gated = partial(plain, normalization=nn.LayerNorm, gating=LSTMGating)

PUBLISHED = [
    (partial(additive, context_dim=256, num_layers=8), 3_009_768),
    (partial(additive, num_layers=8), 3_272_168),
    (partial(additive, hidden_dim=1024, num_layers=10), 12_047_848),
    (partial(normalized, num_layers=8), 3_273_192),
    (partial(normalized, hidden_dim=1024, num_layers=10), 12_048_872),
    (partial(gated, positions="learned"), 4_061_160),
    (partial(gated, hidden_dim=1024, num_layers=11, positions="learned"), 14_148_072),
    (gated, 4_052_968),
    (partial(gated, hidden_dim=1024, num_layers=11), 14_139_880),
    (
        partial(transformer, 1000, 256, num_heads=4, num_layers=6, feedforward_dim=1024),
        5_260_264,
    ),
]


@pytest.mark.parametrize(("make", "published"), PUBLISHED)
def test_published_parameter_count(make: partial[nn.Module], published: int) -> None:
    assert sum(parameter.numel() for parameter in make().parameters()) == published


def test_modern_size_is_about_a_twentieth() -> None:
    model = partial(context_model, 1000, 128, normalization=nn.LayerNorm, gating=LSTMGating)(
        context_dim=128, hidden_dim=128, num_layers=3, fnn="residual"
    )
    without_tables = sum(parameter.numel() for parameter in model.layers.parameters())
    assert without_tables == 116_480
