"""Local, sparse and context attention against equations that are written out for one row.

Shapes: B batch, T time (tokens), D width, N attention heads, K width of a head, C context, M stored
contexts.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from newllm.models.attention import Attention, FullView
from newllm.models.cell import ContextCell
from newllm.models.context_attention import ContextAttention
from newllm.models.gating import LSTMGating
from newllm.models.layer import Layer, State
from newllm.models.local_attention import FEWEST_QUERIES, LocalAttention, SparseAttention
from newllm.models.positions import rotary_angles
from newllm.models.recurrence.reference import Reference

D = 8
T = 2 * FEWEST_QUERIES + 7  # three groups of queries
SIZES = {"num_heads": 2, "num_layers": 2, "feedforward_dim": 12}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def local(**settings: Any) -> LocalAttention:
    torch.manual_seed(0)
    return LocalAttention(D, **SIZES | settings).double()


def sparse(**settings: Any) -> SparseAttention:
    torch.manual_seed(0)
    return SparseAttention(D, **SIZES | settings).double()


def context(**settings: Any) -> ContextAttention:
    torch.manual_seed(0)
    sizes = {"hidden_dim": 6, "context_dim": 4, "num_layers": 2}
    cell = partial(ContextCell, gating=LSTMGating, normalization=nn.LayerNorm, **sizes)
    settings = {"num_heads": 2, "feedforward_dim": 10, "recurrence": Reference()} | settings
    return ContextAttention(D, cell, **settings).double()


def seen_by(layer: LocalAttention, num_tokens: int) -> Tensor:
    """Which tokens [T, T] each token of a row sees, by the definition; tokens count from 1."""
    rows = [
        [
            j <= i
            and (j > i - layer.window or (layer.stride is not None and j % layer.stride == 0))
            for j in range(1, num_tokens + 1)
        ]
        for i in range(1, num_tokens + 1)
    ]
    return torch.tensor(rows)


def naive(layer: LocalAttention, x_TD: Tensor) -> Tensor:
    """One row by attention to all tokens with a mask."""
    num_tokens, rotation = len(x_TD), None
    if layer.positions == "rotary":
        position_1T = torch.arange(num_tokens)[None]
        rotation = rotary_angles(position_1T, D // layer.num_heads, x_TD.dtype)
    view = FullView(seen_by(layer, num_tokens)[None, None], False, rotation)
    return layer.through_blocks(x_TD[None], view, ())[0][0]


LAYERS: dict[str, Callable[[], LocalAttention]] = {
    "local": partial(local, window=5),
    "local, rotary": partial(local, window=FEWEST_QUERIES + 3, positions="rotary"),
    "local, wider than the row": partial(local, window=T + 4),
    "sparse": partial(sparse, window=5, stride=4),
    "sparse, rotary": partial(sparse, window=3, stride=7, positions="rotary", norm_first=True),
    "sparse, all": partial(sparse, window=1, stride=1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients_are_those_of_a_mask(name: str) -> None:
    layer = LAYERS[name]()
    results = []
    for read in (lambda x_TD: layer(x_TD[None])[0][0], partial(naive, layer)):
        x_TD = random(T, D).requires_grad_()
        y_TD = read(x_TD)
        grads = torch.autograd.grad((y_TD * random(T, D)).sum(), [x_TD, *layer.parameters()])
        results.append([y_TD, *grads])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", LAYERS)
def test_many_groups_with_padding_resets_and_chunks(name: str) -> None:
    layer, x_BTD = LAYERS[name](), random(3, T, D)
    generator = torch.Generator().manual_seed(2)
    pad_BT = torch.rand(3, T, generator=generator) < 0.2
    reset_BT = torch.rand(3, T, generator=generator) < torch.tensor([[0.0], [0.03], [0.1]])
    outputs: dict[int, Tensor] = {}
    for size in (T, 40, 9):
        state: State | None = None
        chunks = []
        for each in zip(*(part.split(size, 1) for part in (x_BTD, pad_BT, reset_BT)), strict=True):
            y_BTD, state = layer(each[0], state, *each[1:])
            chunks.append(y_BTD)
        outputs[size] = torch.cat(chunks, 1)
    for row in range(3):
        segment_T, real_T = reset_BT[row].cumsum(0), ~pad_BT[row]
        for segment in segment_T.unique():
            alone_T = (segment_T == segment) & real_T
            expected_TD = naive(layer, x_BTD[row, alone_T])
            for y_BTD in outputs.values():
                torch.testing.assert_close(y_BTD[row, alone_T], expected_TD)


def test_a_window_of_the_whole_row_is_attention() -> None:
    torch.manual_seed(0)
    attention = Attention(D, **SIZES, positions="rotary").double()
    for layer in (local(window=T, positions="rotary"), sparse(window=1, stride=1)):
        positions = layer.positions
        attention.positions = positions
        layer.load_state_dict(attention.state_dict())
        x_BTD = random(2, T, D)
        torch.testing.assert_close(layer(x_BTD)[0], attention(x_BTD)[0])


def test_the_work_of_a_window_grows_with_the_length_alone() -> None:
    def products(num_tokens: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.device("meta"):
            local(window=16).to("meta")(torch.empty(1, num_tokens, D, dtype=torch.double))
        return int(counter.get_total_flops())

    assert products(2048) < 2.1 * products(1024)


def naive_context(layer: ContextAttention, x_TD: Tensor) -> Tensor:
    cell, width = layer.recurrent.cell, layer.output_dim // layer.num_heads
    state = cell.initial_state(1)
    stored, outputs = [state[0][0]], []
    for t, x_D in enumerate(x_TD, start=1):
        hidden_1H, state, _ = cell(x_D[None], state)
        hidden_H = hidden_1H[0]
        keys_MH, values_MH = layer.key_value(torch.stack(stored)).chunk(2, dim=-1)
        query_H = layer.query(layer.query_norm(hidden_H))
        heads = []
        for part in torch.arange(layer.output_dim).split(width):
            weights_M = (keys_MH[:, part] @ query_H[part] / width**0.5).softmax(0)
            heads.append(weights_M @ values_MH[:, part])
        hidden_H = hidden_H + layer.attention_output(torch.cat(heads))
        hidden_H = hidden_H + layer.feedforward(layer.feedforward_norm(hidden_H))
        outputs.append(layer.final_norm(hidden_H))
        if t % layer.block_length == 0:
            stored.append(state[0][0])
    return torch.stack(outputs)


@pytest.mark.parametrize("block_length", [1, 4, 50])
def test_context_attention_is_its_equations(block_length: int) -> None:
    layer = context(block_length=block_length)
    results = []
    for read in (lambda x_TD: layer(x_TD[None])[0][0], partial(naive_context, layer)):
        x_TD = random(21, D).requires_grad_()
        y_TD = read(x_TD)
        grads = torch.autograd.grad((y_TD * random(21, 6)).sum(), [x_TD, *layer.parameters()])
        results.append([y_TD, *grads])
    torch.testing.assert_close(*results)


def test_contexts_are_stored_by_the_tokens_of_each_row() -> None:
    layer, x_BTD = context(block_length=4), random(2, 30, D)
    pad_BT, reset_BT = torch.zeros(2, 30, dtype=torch.bool), torch.zeros(2, 30, dtype=torch.bool)
    pad_BT[0, 1:20:3], reset_BT[1, [6, 17]] = True, True
    y_BTD, (num_read_B, _, keys, _) = layer(x_BTD, None, pad_BT, reset_BT)
    torch.testing.assert_close(y_BTD[0, ~pad_BT[0]], naive_context(layer, x_BTD[0, ~pad_BT[0]]))
    for segment in (slice(6), slice(6, 17), slice(17, 30)):
        torch.testing.assert_close(y_BTD[1, segment], naive_context(layer, x_BTD[1, segment]))
    assert num_read_B.tolist() == [23, 13]
    assert keys.shape[2] == 23 // 4


def test_sizes_of_states() -> None:
    of_token = 2 * 2 * D * 8  # keys and values of two blocks, in float64
    assert local(window=5).state_bytes(1) == local(window=5).state_bytes(999) == 8 + 4 * of_token
    layer = sparse(window=5, stride=4)
    assert [layer.state_bytes(n) for n in (3, 4, 999)] == [
        8 + (4 + kept) * of_token for kept in (0, 1, 249)
    ]
    stored = context(block_length=4)
    assert [stored.state_bytes(n) for n in (3, 4, 999)] == [
        8 + 4 * 8 + kept * 2 * 6 * 8 for kept in (0, 1, 249)
    ]


def test_operations_count_what_a_token_sees() -> None:
    weights = local(window=5).flops_per_token(0)
    for layer in (local(window=5), sparse(window=5, stride=4)):
        for num_tokens in (1, 5, 6, 9, 40):
            seen = int(seen_by(layer, num_tokens)[-1].sum())
            assert layer.flops_per_token(num_tokens) == weights + seen * 2 * 2 * 2 * D


def test_operations_of_keys_and_values_of_contexts_are_counted_at_the_ends_of_blocks() -> None:
    layer = context(block_length=4)
    of_keys_and_values = 2 * layer.key_value.weight.numel()
    within, end, after = map(layer.flops_per_token, (3, 4, 5))
    of_one_more_context = 4 * layer.output_dim
    assert (end - within, after - within) == (of_keys_and_values, of_one_more_context)


def test_descriptions() -> None:
    assert local(window=5).description == ("local_attention E8 heads2 L2 F12 positionless window5")
    assert sparse(window=5, stride=4, positions="rotary").description == (
        "sparse_attention E8 heads2 L2 F12 rotary window5 stride4"
    )
    assert context(block_length=4).description == (
        "context_attention block4 heads2 gated layernorm C4 H6 L2 E8"
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(local, window=0), "model.window=0: must be at least 1"),
        (partial(sparse, window=1, stride=0), "model.stride=0: must be at least 1"),
        (
            partial(context, block_length=0, dropout=1.0),
            "model.block_length=0: must be at least 1\n"
            "model.dropout=1.0: must be at least 0 and below 1",
        ),
        (
            partial(context, block_length=1, num_heads=4),
            "model.num_heads=4: must divide model.hidden_dim=6",
        ),
    ],
)
def test_faults(build: Callable[[], Layer], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        build()
