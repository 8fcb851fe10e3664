"""The layers against references written by others: torch's own networks, and equations written out.

Shapes: B batch, T time (tokens), D width, L layers, H hidden.
"""

import pytest
import torch
from torch import Tensor, nn

from newllm.models.attention import Attention
from newllm.models.mingru import MinGRUStep
from newllm.models.torch_rnn import GRU, LSTM, Elman, TorchRNN

D, H = 8, 6


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def attention(norm_first: bool = False, leaky: bool = False) -> Attention:
    torch.manual_seed(0)
    layer = Attention(D, 2, 2, feedforward_dim=12, norm_first=norm_first, leaky=leaky)
    return layer.double().eval()


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("leaky", [False, True])
def test_attention_equals_torch_encoder(norm_first: bool, leaky: bool) -> None:
    layer = attention(norm_first, leaky)
    block = nn.TransformerEncoderLayer(
        D, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
    )
    encoder = nn.TransformerEncoder(block, 2, nn.LayerNorm(D), enable_nested_tensor=False)
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
        for index, block in enumerate(layer.blocks)
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    weights |= {f"norm.{kind}": getattr(layer.final_norm, kind) for kind in ("weight", "bias")}
    encoder.load_state_dict(weights)
    encoder.double()
    x_BTD = random(3, 6, D)
    mask = None if leaky else nn.Transformer.generate_square_subsequent_mask(6).double()
    expected = encoder(x_BTD, mask=mask, is_causal=not leaky)
    torch.testing.assert_close(layer(x_BTD)[0], expected)


def test_the_leaky_variant_sees_the_future() -> None:
    layer, x_BTD = attention(leaky=True), random(3, 6, D)
    changed_BTD = x_BTD.clone()
    changed_BTD[:, -1] += 1
    before, after = layer(x_BTD)[0], layer(changed_BTD)[0]
    assert not torch.isclose(before, after).all(dim=2).any()


def test_the_leaky_variant_has_no_state() -> None:
    layer, x_BTD = attention(leaky=True), random(1, 3, D)
    assert layer(x_BTD)[1] == layer.initial_state(1) == ()
    assert layer.state_bytes(3) == 0
    with pytest.raises(ValueError, match=r"model\.leaky=true sees the future"):
        layer(x_BTD, ())


def test_the_fast_path_of_attention_equals_the_masked_one() -> None:
    layer, x_BTD = attention(), random(2, 4, D)
    pad_BT = torch.tensor([[False] * 4, [False, False, False, True]])
    no_reset_BT = torch.zeros(2, 4, dtype=torch.bool)
    fast, masked = layer(x_BTD, None, pad_BT)[0], layer(x_BTD, None, pad_BT, no_reset_BT)[0]
    torch.testing.assert_close(fast[~pad_BT], masked[~pad_BT])
    real_BT = ~pad_BT
    assert layer._mask(real_BT, real_BT[:, :0], pad_BT, None) is None
    assert layer._mask(real_BT, real_BT[:, :0], pad_BT, no_reset_BT) is not None


def test_a_stream_with_resets_holds_no_more_than_its_documents() -> None:
    layer, state = attention(), None
    x_BTD = random(2, 40, D)
    reset_BT = torch.zeros(2, 40, dtype=torch.bool)
    reset_BT[0, ::7] = reset_BT[1, 3::6] = True
    outputs, sizes = [], []
    for x, reset in zip(x_BTD.split(4, 1), reset_BT.split(4, 1), strict=True):
        y_BTD, state = layer(x, state, None, reset)
        outputs.append(y_BTD)
        sizes.append(state[0].shape[1])
        assert {part.shape[2] for part in state[1:]} == {sizes[-1]}
    assert max(sizes) <= 7
    alone = [layer(x_BTD[:1, start : start + 7])[0] for start in range(0, 40, 7)]
    torch.testing.assert_close(torch.cat(outputs, 1)[:1], torch.cat(alone, 1))


def test_every_query_sees_something() -> None:
    real_BT = torch.tensor([[False, True, False], [False, False, False]])
    mask_B1TS = attention()._mask(real_BT, torch.zeros(2, 2, dtype=torch.bool), ~real_BT, None)
    assert mask_B1TS is not None
    assert mask_B1TS.any(dim=-1).all()


NETWORKS = {LSTM: nn.LSTM, GRU: nn.GRU, Elman: nn.RNN}


@pytest.mark.parametrize("kind", NETWORKS)
def test_recurrent_layers_equal_torch_networks(kind: type[TorchRNN]) -> None:
    torch.manual_seed(0)
    layer = kind(D, H, 2).double()
    network = NETWORKS[kind](D, H, 2, batch_first=True).double()
    network.load_state_dict(layer.network.state_dict())
    x_BTD = random(3, 5, D)
    y_BTH, state = layer(x_BTD)
    expected_BTH, final = network(x_BTD)
    assert torch.equal(y_BTH, expected_BTH)
    finals = final if isinstance(final, tuple) else (final,)
    for own_BLH, torch_LBH in zip(state, finals, strict=True):
        assert torch.equal(own_BLH, torch_LBH.transpose(0, 1))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("length", [5, 3], ids=["whole", "packed"])
def test_fast_paths_equal_the_stepwise_one(kind: type[TorchRNN], length: int) -> None:
    torch.manual_seed(0)
    layer, x_BTD = kind(D, H, 2).double(), random(2, 5, D)
    _, start = layer(random(2, 1, D))
    pad_BT = torch.zeros(2, 5, dtype=torch.bool)
    pad_BT[0, length:] = True
    hiddens, state = [], start
    for t in range(5):
        hidden_B1H, state = layer(x_BTD[:, t : t + 1], state, pad_BT[:, t : t + 1])
        hiddens.append(hidden_B1H)
    stepwise_BTH = torch.cat(hiddens, dim=1)
    for reset_BT in (None, torch.zeros_like(pad_BT)):
        fast_BTH, after = layer(x_BTD, start, pad_BT if length < 5 else None, reset_BT)
        torch.testing.assert_close(fast_BTH[~pad_BT], stepwise_BTH[~pad_BT])
        torch.testing.assert_close(after, state)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("place", [0, 2])
def test_a_reset_begins_a_row_anew(kind: type[TorchRNN], place: int) -> None:
    torch.manual_seed(0)
    layer, x_BTD = kind(D, H, 2).double(), random(2, 5, D)
    _, start = layer(random(2, 1, D))
    reset_BT = torch.zeros(2, 5, dtype=torch.bool)
    reset_BT[0, place] = True
    y_BTH, after = layer(x_BTD, start, None, reset_BT)
    expected_BTH, expected = layer(x_BTD, start)
    anew_BTH, anew = layer(x_BTD[:, place:])
    torch.testing.assert_close(y_BTH[0, place:], anew_BTH[0])
    torch.testing.assert_close(y_BTH[0, :place], expected_BTH[0, :place])
    torch.testing.assert_close(y_BTH[1], expected_BTH[1])
    for found, own, other in zip(after, anew, expected, strict=True):
        torch.testing.assert_close(found, torch.stack((own[0], other[1])))


def test_mingru_is_the_equation_of_the_paper() -> None:
    torch.manual_seed(0)
    layer = MinGRUStep(3).double()
    inputs_BTH = torch.randn(2, 4, 3, dtype=torch.double)
    state_BH = torch.randn(2, 3, dtype=torch.double)
    real_BT1 = torch.ones(2, 4, 1, dtype=torch.double)
    real_BT1[0, 2] = 0
    reset_BT1 = torch.zeros(2, 4, 1, dtype=torch.double)
    reset_BT1[1, 1] = 1
    states_BTH, final_BH = layer(inputs_BTH, state_BH, real_BT1, reset_BT1)
    for row in range(2):
        state = state_BH[row]
        for t in range(4):
            if reset_BT1[row, t]:
                state = torch.zeros_like(state)
            if real_BT1[row, t]:
                x = inputs_BTH[row, t]
                z = 1 / (1 + torch.exp(-(layer.gate.weight @ x + layer.gate.bias)))
                candidate = layer.candidate.weight @ x + layer.candidate.bias
                state = (1 - z) * state + z * candidate
            torch.testing.assert_close(states_BTH[row, t], state)
        torch.testing.assert_close(final_BH[row], state)
