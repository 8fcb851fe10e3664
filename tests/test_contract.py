"""The contracts of layers and cells, asked of each by the helper that users have."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newllm.models.attention import Attention
from newllm.models.cell import Cell, ContextCell
from newllm.models.context_attention import ContextAttention
from newllm.models.contract import check_cell, check_gradients, check_layer
from newllm.models.delta import DeltaCell
from newllm.models.fnn import FNNS
from newllm.models.gating import Additive, Gating, LSTMGating
from newllm.models.hierarchy import HierarchyCell
from newllm.models.layer import Layer, State, zeros
from newllm.models.linear_delta import LinearDelta
from newllm.models.local_attention import LocalAttention, SparseAttention
from newllm.models.mingru import MinGRU
from newllm.models.multihead import MultiHeadCell
from newllm.models.positions import LearnedPositions
from newllm.models.readout import Readout
from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.parallel import Parallel
from newllm.models.recurrence.reference import Chunk, Reference
from newllm.models.recurrent import Recurrent
from newllm.models.skip import SkipCell
from newllm.models.stacked import StackedCell
from newllm.models.torch_rnn import GRU, LSTM, Elman

D = 8
attention = partial(Attention, D, num_heads=2, num_layers=2, feedforward_dim=12, dropout=0.3)


def local(kind: type[LocalAttention], window: int = 3, **settings: Any) -> LocalAttention:
    return kind(D, 2, 2, feedforward_dim=12, window=window, dropout=0.3, **settings)


def context_attention(
    cell: Callable[..., Cell], block_length: int = 3, **settings: Any
) -> ContextAttention:
    return ContextAttention(
        D,
        cell,
        block_length,
        num_heads=2,
        feedforward_dim=10,
        dropout=0.3,
        hidden_dim=6,
        recurrence=Fused(compile=False),
        **settings,
    )


rnn = {"hidden_dim": 6, "num_layers": 2, "dropout": 0.3}

LAYERS: dict[str, Callable[[], Layer]] = {
    "attention": attention,
    "attention_rotary": partial(attention, positions="rotary"),
    "attention_prenorm": partial(attention, norm_first=True),
    "attention_leaky": partial(attention, leaky=True),
    "local_attention": partial(local, LocalAttention),
    "local_attention_rotary": partial(local, LocalAttention, positions="rotary"),
    "local_attention_of_itself": partial(local, LocalAttention, window=1),
    "sparse_attention": partial(local, SparseAttention, stride=3),
    "sparse_attention_rotary": partial(local, SparseAttention, stride=2, positions="rotary"),
    "sparse_attention_wide": partial(local, SparseAttention, window=9, stride=1),
    "lstm": partial(LSTM, D, **rnn),
    "gru": partial(GRU, D, **rnn),
    "elman": partial(Elman, D, **rnn),
    "mingru": partial(MinGRU, D, feedforward_dim=10, **rnn),
    "context_attention": partial(context_attention, ContextCell, num_layers=3, context_dim=4),
    "context_attention_of_delta": partial(
        context_attention, partial(DeltaCell, num_heads=2), 2, num_layers=2, context_dim=4
    ),
    "delta": partial(
        Recurrent,
        D,
        partial(DeltaCell, num_heads=2, num_factors=2),
        Fused(compile=False),
        **rnn | {"context_dim": 4},
    ),
    "linear_delta": partial(LinearDelta, D, feedforward_dim=10, num_heads=2, **rnn),
    "linear_delta_product": partial(
        LinearDelta, D, feedforward_dim=10, num_heads=3, num_factors=2, conv_width=2, **rnn
    ),
    "linear_delta_without_convolution": partial(
        LinearDelta, D, 6, 1, 6, num_heads=1, conv_width=1, negative_eigenvalues=False
    ),
    "positions": partial(LearnedPositions, D, 16),
    "readout": partial(Readout, D, num_layers=3, dropout=0.3),
}


class CoupledGating(Gating):
    """A gating that only this test knows."""

    name = "coupled"

    def __init__(self, hidden_dim: int, context_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_dim, context_dim)
        self.delta = nn.Linear(hidden_dim, context_dim, bias=False)

    def forward(self, hidden_BH: Tensor, context_BC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        gate_BC = torch.sigmoid(self.gate(hidden_BH))
        return context_BC.lerp(self.delta(hidden_BH), gate_BC), {"gate": gate_BC}


class DeltaMemory(Cell):
    """A matrix that is written at a key and read by a query, and a count of the tokens."""

    dropout = 0.3
    num_masks = 1

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__(input_dim, hidden_dim)
        self.mask_dim = hidden_dim
        self.project = nn.Linear(input_dim, 3 * hidden_dim)
        self.rate = nn.Linear(input_dim, 1)

    def forward(
        self, inputs_BE: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        memory_BHH, count_B = state
        query_BH, key_BH, value_BH = self.project(inputs_BE).chunk(3, dim=-1)
        key_BH, rate_B1 = F.normalize(key_BH, dim=-1), torch.sigmoid(self.rate(inputs_BE))
        stored_BH = torch.einsum("bvk,bk->bv", memory_BHH, key_BH)
        change_BH = rate_B1 * (value_BH - stored_BH)
        memory_BHH = memory_BHH + torch.einsum("bv,bk->bvk", change_BH, key_BH)
        read_BH = torch.einsum("bvk,bk->bv", memory_BHH, query_BH)
        read_BH = read_BH if masks is None else read_BH * masks[0]
        return read_BH / (1 + count_B[:, None]), (memory_BHH, count_B + 1), {"rate": rate_B1}

    def initial_state(self, batch_size: int) -> State:
        count_B = zeros(self, batch_size).long()
        return zeros(self, batch_size, self.output_dim, self.output_dim), count_B


context = partial(ContextCell, 5, context_dim=4, hidden_dim=6, num_layers=3, dropout=0.3)
parts = {
    **{"input_dim": 5, "context_dim": 4, "hidden_dim": 6, "num_layers": 2, "dropout": 0.3},
    **{"gating": LSTMGating, "normalization": nn.LayerNorm, "fnn": "residual"},
}
CELLS: dict[str, Callable[[], Cell]] = {
    f"{gating.name} {normalization.__name__} {fnn} {clip}": partial(
        context, gating=gating, normalization=normalization, fnn=fnn, context_clip=clip
    )
    for gating, normalization, fnn, clip in product(
        (Additive, LSTMGating, CoupledGating), (nn.Identity, nn.LayerNorm), FNNS, (None, 0.5)
    )
} | {
    "delta memory": partial(DeltaMemory, 5, 4),
    "delta": partial(
        DeltaCell, 5, 4, 6, num_layers=3, num_heads=2, num_factors=2, dropout=0.3, fnn="residual"
    ),
    "multihead": partial(MultiHeadCell, num_heads=2, **parts),
    "clocked": partial(HierarchyCell, periods=[1, 3], **parts),
    "learned": partial(HierarchyCell, periods=[1, 3], rates="learned", **parts),
    "skip add": partial(SkipCell, skip_steps=3, **parts),
    "skip read": partial(SkipCell, skip_steps=3, skip="read", **parts),
    "stacked": partial(StackedCell, cell=ContextCell, **parts),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    torch.manual_seed(0)
    check_layer(LAYERS[name]())


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    check_gradients(LAYERS[name]())


@pytest.mark.parametrize("name", CELLS)
def test_cell(name: str) -> None:
    torch.manual_seed(0)
    cell = CELLS[name]()
    for parameter in cell.parameters():  # away from LayerNorm's 1 and 0, which would hide faults
        nn.init.normal_(parameter, std=0.5)
    check_cell(cell, [Parallel(), Parallel(newton=True)])


class Running(Layer):
    """The mean of all inputs so far; `fault` says what it does wrong."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(D, D)
        self.fault = fault
        self.weight = nn.Parameter(torch.ones(D))

    def forward(self, x_BTD, state=None, pad_BT=None, reset_BT=None):  # type: ignore[no-untyped-def]
        sum_BD, count_B1 = self.initial_state(len(x_BTD)) if state is None else state
        outputs = []
        for t, x_BD in enumerate(x_BTD.unbind(1)):
            if reset_BT is not None and self.fault != "never forgets":
                keep_B1 = ~reset_BT[:, t, None]
                sum_BD, count_B1 = sum_BD * keep_B1, count_B1 * keep_B1
            is_real_B1 = torch.ones_like(count_B1, dtype=torch.bool)
            if pad_BT is not None and self.fault != "counts padding":
                is_real_B1 = ~pad_BT[:, t, None]
            sum_BD, count_B1 = sum_BD + x_BD * is_real_B1, count_B1 + is_real_B1
            outputs.append(self.weight * sum_BD / count_B1.clamp(min=1))
        y_BTD = torch.stack(outputs, 1)
        if self.fault == "peeks":
            y_BTD = y_BTD + x_BTD.mean(1, keepdim=True)
        if self.fault == "draws in evaluation":
            y_BTD = y_BTD + torch.rand(())
        if self.fault == "mixes rows":
            sum_BD = sum_BD + sum_BD.mean(0)
        if self.fault == "loses its state":
            sum_BD = 0 * sum_BD
        return y_BTD, (sum_BD, count_B1) if self.fault != "drops a tensor" else (sum_BD,)

    def initial_state(self, batch_size: int) -> State:
        return zeros(self, batch_size, D), zeros(self, batch_size, 1)

    def state_bytes(self, num_tokens: int) -> int:
        return super().state_bytes(num_tokens) + (self.fault == "miscounts bytes")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("never forgets", "tokens before a reset change no output"),
        ("counts padding", "padding leaves the state as it was|padding and tokens before"),
        ("peeks", "no later token changes output 0"),
        ("draws in evaluation", "nothing is drawn in evaluation"),
        ("mixes rows", "a reset forgets|gives? what the whole gives"),
        ("loses its state", "a reset forgets|steps give what the whole gives"),
        ("drops a tensor", "the state keeps its number of tensors"),
        ("miscounts bytes", r"state_bytes\(1\) are those of the state"),
    ],
)
def test_a_broken_layer_is_told(fault: str, message: str) -> None:
    check_layer(Running())
    with pytest.raises(AssertionError, match=message) as error:
        check_layer(Running(fault))
    assert str(error.value).startswith("Running (running H8): ")


class Detached(nn.Linear):
    """A Linear whose weight gets no gradient from half of its outputs."""

    def forward(self, input: Tensor) -> Tensor:
        half = self.out_features // 2
        kept, lost = self.weight[:half], self.weight[half:].detach()
        return F.linear(input, torch.cat((kept, lost)), self.bias)


def test_wrong_gradients_are_told() -> None:
    layer = MinGRU(D, feedforward_dim=10, **rnn)
    layer.input = Detached(D, layer.output_dim)
    with pytest.raises(AssertionError, match=r"MinGRU .*gradients are those of finite differences"):
        check_gradients(layer)


class Forgetful:
    """A recurrence that drops nothing and goes on as if each chunk were the first."""

    def __call__(self, cell: Cell, chunk: Chunk) -> tuple[Tensor, State]:
        initial = cell.initial_state(len(chunk.inputs_BTE))
        return Reference()(cell, chunk._replace(state=initial, masks=None))


def test_a_broken_recurrence_is_told() -> None:
    cell = CELLS["gated Identity plain None"]()
    with pytest.raises(AssertionError, match=r"ContextCell .gated C4 H6 L3 E5.: Forgetful gives"):
        check_cell(cell, [Forgetful()])
