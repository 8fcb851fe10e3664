"""The Transformer against torch's own, and the leak of its faulty variant.

Shapes: B batch, T time (tokens), E embedding, V vocabulary.
"""

import pytest
import torch
from torch import nn

from newllm.models.positions import LearnedPositions
from newllm.models.transformer import Transformer

V, E = 11, 8


def make(norm_first: bool = False, leaky: bool = False) -> Transformer:
    torch.manual_seed(0)
    return (
        Transformer(
            V,
            embedding_dim=E,
            num_heads=2,
            num_layers=2,
            feedforward_dim=12,
            norm_first=norm_first,
            leaky=leaky,
            initialization=lambda model: None,  # torch's defaults, so that norms matter
        )
        .double()
        .eval()
    )


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("leaky", [False, True])
def test_equals_torch_encoder(norm_first: bool, leaky: bool) -> None:
    model = make(norm_first, leaky)
    layer = nn.TransformerEncoderLayer(
        E, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
    )
    encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(E), enable_nested_tensor=False)
    names = {
        "query_key_value": "self_attn.in_proj_",
        "attention_output": "self_attn.out_proj.",
        "expand": "linear1.",
        "contract": "linear2.",
        "attention_norm": "norm1.",
        "feedforward_norm": "norm2.",
    }
    weights = {
        f"layers.{index}.{theirs}{kind}": getattr(getattr(block, ours), kind)
        for index, block in enumerate(model.blocks)
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    weights |= {f"norm.{kind}": getattr(model.final_norm, kind) for kind in ("weight", "bias")}
    encoder.load_state_dict(weights)
    encoder.double()

    tokens = torch.randint(1, V, (3, 6))
    assert isinstance(model.positions, LearnedPositions)
    embedded_BTE = model.embedding(tokens) + model.positions.table.weight[:6]
    mask = None if leaky else nn.Transformer.generate_square_subsequent_mask(6).double()
    expected = model.output(encoder(embedded_BTE, mask=mask, is_causal=not leaky))
    torch.testing.assert_close(model(tokens)[0], expected)


def test_the_leaky_variant_sees_the_future() -> None:
    model = make(leaky=True)
    tokens = torch.randint(1, V - 1, (3, 6))
    changed = tokens.clone()
    changed[:, -1] += 1
    before, after = model(tokens)[0], model(changed)[0]
    assert not torch.isclose(before, after).all(dim=2).any()


def test_the_leaky_variant_sees_no_padding_and_no_other_segment() -> None:
    model = make(leaky=True)
    tokens = torch.tensor([[2, 5, 3, 0, 0], [2, 5, 7, 8, 3]])
    torch.testing.assert_close(model(tokens)[0][0, :3], model(tokens[:1, :3])[0][0])
    reset = torch.zeros(2, 5, dtype=torch.bool)
    reset[1, 2] = True
    segmented, _ = model(tokens, reset=reset)
    torch.testing.assert_close(segmented[1, :2], model(tokens[1:, :2])[0][0])
    torch.testing.assert_close(segmented[1, 2:], model(tokens[1:, 2:])[0][0])


def test_the_leaky_variant_has_no_state() -> None:
    model = make(leaky=True)
    tokens = torch.tensor([[2, 5, 3]])
    assert model(tokens)[1] is None
    assert model.state_bytes(3) == 0
    _, state = make()(tokens)
    with pytest.raises(ValueError, match=r"model\.leaky=true sees the future"):
        model(tokens, state)


def test_fast_path_equals_the_masked_one() -> None:
    model = make()
    tokens = torch.tensor([[2, 5, 6, 3], [2, 5, 3, 0]])
    no_reset = torch.zeros(2, 4, dtype=torch.bool)
    torch.testing.assert_close(
        model(tokens)[0][tokens != 0], model(tokens, reset=no_reset)[0][tokens != 0]
    )
    real_BT = tokens != 0
    assert model._view(real_BT, real_BT[:, :0], None).is_causal
    assert not model._view(real_BT, real_BT[:, :0], no_reset).is_causal


def test_every_query_sees_something() -> None:
    real_BT = torch.tensor([[False, True, False], [False, False, False]])
    mask_B1TS, _, _ = make()._view(real_BT, torch.zeros(2, 2, dtype=torch.bool), None)
    assert mask_B1TS is not None
    assert mask_B1TS.any(dim=-1).all()


def test_gradients() -> None:
    model = make()
    tokens = torch.tensor([[2, 5, 0, 3], [2, 0, 6, 0]])
    reset = torch.tensor([[False, False, True, False], [False] * 4])
    names = [name for name, _ in model.named_parameters()]

    def run(*weights: torch.Tensor) -> torch.Tensor:
        values = dict(zip(names, weights, strict=True))
        logits, _ = torch.func.functional_call(model, values, (tokens, None, reset))
        return logits

    assert torch.autograd.gradcheck(run, tuple(model.parameters()), fast_mode=True)
