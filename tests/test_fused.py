"""The fused recurrence against the reference: values, gradients, memory, and cells it never saw.

Shapes: B batch, T time (tokens), E embedding, C context, H hidden, V vocabulary.
"""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product

import pytest
import torch
from conftest import SetThreads
from torch import Tensor, nn
from torch.nn.utils import prune

from newllm.models import context
from newllm.models.cell import ContextCell
from newllm.models.context import ContextModel
from newllm.models.fnn import FNNS
from newllm.models.gating import Additive, Gating, LSTMGating
from newllm.models.initialization import variance_preserving
from newllm.models.recurrence import fused
from newllm.models.recurrence import reference as recurrence
from newllm.models.recurrence.fused import FEW_STEPS, Fused
from newllm.models.recurrence.native.buffers import Buffers, Memory
from newllm.models.recurrence.native.weights import has_native_code
from newllm.models.recurrence.reference import DropoutMasks, Recurrence, Reference, Rollout

B, E, C, H = 3, 5, 4, 6
BLOCK = 4  # steps of a segment here
MANY_STEPS = 2 * BLOCK + 1


class CoupledGating(Gating):
    """A gating that only this test knows, so that it has no backward pass written by hand."""

    name = "coupled"

    def __init__(self, hidden_dim: int, context_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_dim, context_dim)
        self.delta = nn.Linear(hidden_dim, context_dim, bias=False)

    def forward(self, hidden_BH: Tensor, context_BC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        gate_BC = torch.sigmoid(self.gate(hidden_BH))
        return context_BC.lerp(self.delta(hidden_BH), gate_BC), {"gate": gate_BC}


GATINGS = (Additive, LSTMGating, CoupledGating)
NORMALIZATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "layernorm": lambda: nn.LayerNorm(C),
    "layernorm_without_weights": lambda: nn.LayerNorm(C, elementwise_affine=False),
    "layernorm_without_bias": lambda: nn.LayerNorm(C, bias=False),
}


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (context, fused, recurrence):
        monkeypatch.setattr(module, "MASK_BLOCK", BLOCK)


def make_cell(
    gating: type[Gating] = LSTMGating,
    normalization: str = "layernorm",
    fnn: str = "plain",
    clip: float | None = None,
    dropout: float = 0.3,
) -> ContextCell:
    torch.manual_seed(0)
    cell = ContextCell(
        E, C, H, FNNS[fnn](H, 3), gating(H, C), NORMALIZATIONS[normalization](), clip, dropout
    ).double()
    for parameter in cell.parameters():
        nn.init.normal_(parameter, std=0.5)
    return cell


def make_input(num_steps: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    embedded_BTE = torch.randn(B, num_steps, E, dtype=torch.double, requires_grad=True)
    return embedded_BTE, torch.randn(B, C, dtype=torch.double, requires_grad=True)


def make_flags(num_steps: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.rand(B, num_steps) < 0.3, torch.rand(B, num_steps) < 0.3


def results(
    carry: Callable[..., Rollout],
    cell: ContextCell,
    inputs: tuple[Tensor, Tensor],
    pad_BT: Tensor | None = None,
    reset_BT: Tensor | None = None,
) -> list[Tensor]:
    """Hidden vectors, contexts, and the gradients of a loss that weighs every element otherwise.

    Hidden vectors of padding mean nothing, so they are zeroed.
    """
    embedded_BTE, context_BC = (x.detach().requires_grad_() for x in inputs)
    torch.manual_seed(3)
    masks = DropoutMasks.draw(cell, embedded_BTE)
    rollout = carry(cell, embedded_BTE, context_BC, masks, pad_BT, reset_BT)
    hidden_BTH = rollout.hidden_BTH
    if pad_BT is not None:
        hidden_BTH = hidden_BTH.masked_fill(pad_BT[:, :, None], 0)
    torch.manual_seed(4)
    loss = sum((x * torch.randn_like(x)).sum() for x in (hidden_BTH, rollout.contexts_BTC))
    assert isinstance(loss, Tensor)
    loss.backward()
    grads = [p.grad for p in (embedded_BTE, context_BC, *cell.parameters())]
    cell.zero_grad()
    assert all(grad is not None for grad in grads)
    return [hidden_BTH, rollout.contexts_BTC, *(g for g in grads if g is not None)]


@pytest.mark.parametrize("flags", ["", "pad", "reset", "pad reset"])
@pytest.mark.parametrize("fnn", FNNS)
@pytest.mark.parametrize("gating", GATINGS)
def test_equals_the_reference(gating: type[Gating], fnn: str, flags: str) -> None:
    for normalization, clip, dropout, num_steps in product(
        NORMALIZATIONS, (None, 0.5), (0.0, 0.3), (1, MANY_STEPS)
    ):
        cell = make_cell(gating, normalization, fnn, clip, dropout)
        pad_BT, reset_BT = make_flags(num_steps)
        chosen = (pad_BT if "pad" in flags else None, reset_BT if "reset" in flags else None)
        inputs = make_input(num_steps)
        expected = results(Reference(), cell, inputs, *chosen)
        found = results(Fused(), cell, inputs, *chosen)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def make_sized_cell(
    sizes: tuple[int, int, int, int], fnn: str, gating: type[Gating], clip: float | None
) -> ContextCell:
    embedding_dim, context_dim, hidden_dim, num_layers = sizes
    return ContextCell(
        embedding_dim,
        context_dim,
        hidden_dim,
        FNNS[fnn](hidden_dim, num_layers),
        gating(hidden_dim, context_dim),
        nn.LayerNorm(context_dim) if clip is None else nn.Identity(),
        clip,
        dropout=0.2,
    )


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fnn", FNNS)
@pytest.mark.parametrize("sizes", [(1, 5, 7, 1), (20, 33, 17, 2), (16, 16, 48, 3)])
def test_equals_the_reference_at_any_size(
    sizes: tuple[int, int, int, int],
    fnn: str,
    dtype: torch.dtype,
    num_threads: int,
    threads: SetThreads,
) -> None:
    """Batches and layers that fill no vector, no panel, or several of them; rows that end."""
    threads(num_threads)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    variants = ((LSTMGating, None), (Additive, None), (LSTMGating, 0.3), (Additive, 0.3))
    for batch_size, (gating, clip) in product((1, 3, 8, 12, 16, 17, 40), variants):
        torch.manual_seed(0)
        cell = make_sized_cell(sizes, fnn, gating, clip).to(dtype)
        inputs = (
            torch.randn(batch_size, MANY_STEPS, sizes[0], dtype=dtype),
            torch.randn(batch_size, sizes[1], dtype=dtype),
        )
        length_B = torch.randint(1, MANY_STEPS + 1, (batch_size,)).sort(descending=True).values
        pad_BT = torch.arange(MANY_STEPS) >= length_B[:, None]
        pad_BT |= torch.rand(batch_size, MANY_STEPS) < 0.1
        reset_BT = torch.rand(batch_size, MANY_STEPS) < 0.2
        expected = results(Reference(), cell, inputs, pad_BT, reset_BT)
        found = results(Fused(), cell, inputs, pad_BT, reset_BT)
        for result, wanted in zip(found, expected, strict=True):
            difference, size = (float(x.detach().norm()) for x in (result - wanted, wanted))
            assert difference <= tolerance * (size + 1e-3), (batch_size, gating, clip)


@pytest.mark.parametrize("fnn", FNNS)
@pytest.mark.parametrize("gating", GATINGS)
def test_gradients_against_finite_differences(gating: type[Gating], fnn: str) -> None:
    cell = make_cell(gating, fnn=fnn, clip=1.5)
    pad_BT, reset_BT = make_flags(FEW_STEPS)
    names = [name for name, _ in cell.named_parameters()]

    class Carried(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, embedded_BTE: Tensor, context_BC: Tensor) -> tuple[Tensor, Tensor]:
            torch.manual_seed(5)
            masks = DropoutMasks.draw(self.cell, embedded_BTE)
            rollout = Fused()(self.cell, embedded_BTE, context_BC, masks, pad_BT, reset_BT)
            return rollout.hidden_BTH.masked_fill(pad_BT[:, :, None], 0), rollout.contexts_BTC

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        weights = {f"cell.{name}": tensor for name, tensor in zip(names, tensors[2:], strict=True)}
        hidden_BTH, contexts_BTC = torch.func.functional_call(Carried(), weights, tensors[:2])
        return hidden_BTH, contexts_BTC

    inputs = (*make_input(FEW_STEPS), *cell.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_equals_the_reference_in_float32_at_real_sizes() -> None:
    def gradients(carry: Recurrence) -> list[Tensor]:
        torch.manual_seed(0)
        model = ContextModel(
            100, num_layers=9, gating=LSTMGating, normalization=nn.LayerNorm, recurrence=carry
        )
        tokens_BT = torch.randint(4, 100, (4, 9))
        model(tokens_BT)[0].logsumexp(-1).sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for grad, expected in zip(gradients(Fused()), gradients(Reference()), strict=True):
        assert float((grad - expected).norm()) <= 1e-5 * float(expected.norm())


def test_which_cells_have_native_code() -> None:
    """Else the tests above would compare less than they say."""
    for gating, normalization, fnn in product((Additive, LSTMGating), NORMALIZATIONS, FNNS):
        assert has_native_code(make_cell(gating, normalization, fnn))


def replace_a_layer(cell: ContextCell) -> None:
    cell.fnn.layers[0] = nn.Linear(H, H, bias=False).double()


CHANGES: dict[str, Callable[[ContextCell], object]] = {
    "a layer without bias": replace_a_layer,
    "another type": lambda cell: cell.bfloat16(),
    "two types": lambda cell: cell.gating.float(),
    "another normalization": lambda cell: setattr(cell, "normalization", nn.Linear(C, C).double()),
    "weight norm": lambda cell: nn.utils.parametrizations.weight_norm(cell.input),
    "pruning": lambda cell: prune.random_unstructured(cell.input, "weight", 0.5),
    "a hook": lambda cell: cell.fnn.register_forward_hook(lambda *_: None),
    "another gating": lambda cell: setattr(cell, "gating", CoupledGating(H, C).double()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_which_cells_have_none(change: str) -> None:
    """What native code does not know of it must not touch."""
    cell = make_cell()
    CHANGES[change](cell)
    assert not has_native_code(cell)


def test_a_layer_that_is_used_twice_gets_both_gradients() -> None:
    cell = make_cell()
    cell.fnn.layers[1] = cell.fnn.layers[0]
    assert has_native_code(cell)
    inputs = make_input(FEW_STEPS)
    torch.testing.assert_close(results(Fused(), cell, inputs), results(Reference(), cell, inputs))


def test_no_gradients_keep_no_histories_and_change_no_number() -> None:
    cell, carry, inputs = make_cell(), Fused(), make_input(MANY_STEPS)
    torch.manual_seed(3)
    masks = DropoutMasks.draw(cell, inputs[0])
    expected = Reference()(cell, *inputs, masks)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            found = carry(cell, *inputs, masks)
            torch.testing.assert_close(found.hidden_BTH, expected.hidden_BTH)
            torch.testing.assert_close(found.contexts_BTC, expected.contexts_BTC)
    # What inference mode left behind must not be in the way of training.
    found = carry(cell, *inputs, masks)
    torch.testing.assert_close(found.contexts_BTC, expected.contexts_BTC)
    found.hidden_BTH.sum().backward()


def test_what_the_caller_changes_after_the_forward_pass_does_not_matter() -> None:
    cell, inputs = make_cell(dropout=0), make_input(FEW_STEPS)
    grads = []
    for changes in (False, True):
        pad_BT, reset_BT = make_flags(FEW_STEPS)
        loss = Fused()(cell, *inputs, None, pad_BT, reset_BT).contexts_BTC.square().sum()
        if changes:
            pad_BT.logical_not_()
            reset_BT.logical_not_()
        grads.append(torch.autograd.grad(loss, list(cell.parameters())))
    torch.testing.assert_close(grads[0], grads[1])


def test_an_unstable_cell_beside_resets_stays_finite() -> None:
    """What fills up a vector of the batch is a sequence that nobody resets."""
    torch.manual_seed(0)
    cell = make_sized_cell((8, 40, 60, 2), "plain", Additive, clip=1e30)
    for parameter in cell.parameters():
        parameter.data.mul_(4)
    inputs = torch.randn(3, 64, 8), torch.zeros(3, 40)
    reset_BT = (torch.arange(64) % 4 == 0).expand(3, -1)
    found = results(Fused(), cell, inputs, None, reset_BT)
    assert all(bool(tensor.isfinite().all()) for tensor in found)


def test_fewer_threads_than_torch_says() -> None:
    """OpenMP may give fewer; waiting for the others would never end."""
    program = """
import torch
from newllm.models.context import ContextModel
torch.set_num_threads(2)
loss, _ = ContextModel(20, 8, 32, 32, 2).score(*torch.ones(2, 4, 9, dtype=torch.long))
loss.sum().backward()
"""
    for limit in ("OMP_THREAD_LIMIT=1", "OMP_DYNAMIC=true", "OMP_MAX_ACTIVE_LEVELS=0"):
        name, _, value = limit.partition("=")
        subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {name: value}, check=True, timeout=120
        )


def test_only_wanted_gradients_are_returned() -> None:
    embedded_BTE, context_BC = make_input(FEW_STEPS)
    for gating in GATINGS:
        cell = make_cell(gating, dropout=0)
        loss = Fused()(cell, embedded_BTE, context_BC).hidden_BTH.sum()
        expected_loss = Reference()(cell, embedded_BTE, context_BC).hidden_BTH.sum()
        (wanted,) = torch.autograd.grad(expected_loss, context_BC, retain_graph=True)
        for _ in range(2):
            (once,) = torch.autograd.grad(loss, context_BC, retain_graph=True)
            torch.testing.assert_close(once, wanted)
        loss.backward()
        grads = [p.grad for p in cell.parameters()]
        cell.zero_grad()
        expected_loss.backward()
        torch.testing.assert_close(grads, [p.grad for p in cell.parameters()])


def test_a_frozen_cell_still_passes_gradients_to_its_inputs() -> None:
    for gating in GATINGS:
        cell = make_cell(gating, dropout=0).requires_grad_(False)
        embedded_BTE, context_BC = make_input(FEW_STEPS)
        grads = [
            torch.autograd.grad(
                carry(cell, embedded_BTE, context_BC).hidden_BTH.sum(),
                (embedded_BTE, context_BC),
            )
            for carry in (Reference(), Fused())
        ]
        torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("gating", GATINGS)
def test_a_weight_changed_before_backward_is_an_error(gating: type[Gating]) -> None:
    cell = make_cell(gating)
    rollout = Fused()(cell, *make_input(FEW_STEPS))
    with torch.no_grad():
        cell.input.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rollout.hidden_BTH.sum().backward()


def test_two_graphs_alive_at_once_do_not_share_buffers() -> None:
    cell, carry = make_cell(dropout=0), Fused()
    embedded_BTE, context_BC = make_input(FEW_STEPS)

    def gradient(hidden_BTH: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad((hidden_BTH * hidden_BTH).sum(), cell.input.weight)
        return grad

    first = carry(cell, embedded_BTE, context_BC)
    kept = first.hidden_BTH.clone()
    second = carry(cell, 2 * embedded_BTE, context_BC)
    gradient(second.hidden_BTH)
    expected = Reference()(cell, embedded_BTE, context_BC)
    torch.testing.assert_close(gradient(first.hidden_BTH), gradient(expected.hidden_BTH))
    assert torch.equal(first.hidden_BTH, kept)


def test_memory_is_used_again() -> None:
    memory = Memory()
    matrix = (buffers := Buffers(memory, torch.float32)).matrix(3, 5)
    assert matrix.shape == (3, 5)
    place = matrix.data_ptr()
    assert Buffers(memory, torch.float32).matrix(3, 5).data_ptr() != place
    del buffers, matrix
    assert place in {Buffers(memory, torch.float32).matrix(4, 4).data_ptr() for _ in range(2)}


def score_gradients(
    gating: type[Gating], carry: Recurrence, positions: str, batch_size: int
) -> list[Tensor]:
    """Losses of a chunk of several blocks with padding, and the gradients they give."""
    torch.manual_seed(0)
    model = ContextModel(
        20, E, C, H, 3, positions, 40, 0.3, gating=gating, recurrence=carry
    ).double()
    tokens_BT = torch.randint(4, 20, (batch_size, MANY_STEPS + 1))
    tokens_BT[0, -2:] = 0
    torch.manual_seed(1)
    loss_BT, correct_BT = model.score(tokens_BT[:, :-1], tokens_BT[:, 1:])
    loss_BT.sum().backward()
    grads = [p.grad for p in model.parameters()]
    assert all(grad is not None for grad in grads)
    return [loss_BT, correct_BT, *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize("batch_size", [3, 4])  # one that fills the lanes, and one that does not
@pytest.mark.parametrize("positions", ["none", "learned"])
@pytest.mark.parametrize("gating", GATINGS)
def test_recompute_changes_no_number(gating: type[Gating], positions: str, batch_size: int) -> None:
    torch.testing.assert_close(
        score_gradients(gating, Fused(recompute=True), positions, batch_size),
        score_gradients(gating, Reference(), positions, batch_size),
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("fnn", FNNS)
@pytest.mark.parametrize("gating", [Additive, LSTMGating])
def test_known_contexts_change_no_number(gating: type[Gating], fnn: str) -> None:
    torch.manual_seed(6)
    for sizes, clip in product([(8, 20, 33, 3), (8, 16, 16, 1)], (None, 0.3)):
        cell = make_sized_cell(sizes, fnn, gating, clip).double()
        inputs = torch.randn(4, MANY_STEPS, 8).double(), torch.randn(4, sizes[1]).double()
        flags = torch.rand(4, MANY_STEPS) < 0.3, torch.rand(4, MANY_STEPS) < 0.3
        expected = results(Reference(), cell, inputs, *flags)
        knowing = partial(Fused(), known_BTC=expected[1].detach())
        found = results(knowing, cell, inputs, *flags)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_recompute_drops_the_same_embeddings_and_outputs_again() -> None:
    def gradients(recompute: bool) -> list[Tensor | None]:
        torch.manual_seed(1)
        model = ContextModel(
            20, E, C, H, 3, gating=LSTMGating, recurrence=Fused(recompute),
            embedding_dropout=0.4, output_dropout=0.4,
        )  # fmt: skip
        tokens_BT = torch.randint(4, 20, (B, BLOCK))  # one block, so that both draw alike
        torch.manual_seed(2)
        loss_BT, _ = model.score(tokens_BT, tokens_BT)
        loss_BT.sum().backward()
        return [weight.grad for weight in model.parameters()]

    torch.testing.assert_close(gradients(True), gradients(False))


@pytest.mark.parametrize("gating", [LSTMGating, CoupledGating])
def test_recompute_holds_a_fraction_of_the_memory(gating: type[Gating]) -> None:
    def bytes_held(recompute: bool) -> int:
        model = ContextModel(20, E, C, H, 3, gating=gating, recurrence=Fused(recompute))
        tokens_BT = torch.randint(4, 20, (B, 40 * BLOCK))
        gc.collect()
        before = {id(tensor) for tensor in _live_tensors()}
        loss_BT, _ = model.score(tokens_BT, tokens_BT)
        assert loss_BT.requires_grad
        storages = [t.untyped_storage() for t in _live_tensors() if id(t) not in before]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    assert bytes_held(recompute=True) < bytes_held(recompute=False) / 8


def _live_tensors() -> list[Tensor]:
    return [thing for thing in gc.get_objects() if type(thing) is Tensor]


def train(precision: Callable[[], AbstractContextManager[object]], carry: Recurrence) -> float:
    """Learn to repeat the token before, for a few steps; the loss at the end in nats."""
    torch.manual_seed(0)
    model = ContextModel(
        8,
        16,
        16,
        16,
        2,
        gating=LSTMGating,
        normalization=nn.LayerNorm,
        recurrence=carry,
        initialization=variance_preserving,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        tokens_BT = torch.randint(1, 8, (16, 9))
        with precision():
            loss_BT, _ = model.score(tokens_BT, tokens_BT.roll(1, dims=1))
        loss = loss_BT[:, 1:].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("recompute", [False, True])
def test_trains_in_bfloat16(recompute: bool) -> None:
    bfloat16 = partial(torch.autocast, "cpu", torch.bfloat16)
    assert train(bfloat16, Fused(recompute)) < 1
    assert train(nullcontext, Fused(recompute)) < 1


def test_the_loop_leaves_the_linears_as_they_were() -> None:
    cell = make_cell(CoupledGating)
    Fused()(cell, *make_input(FEW_STEPS))
    assert all("forward" not in vars(module) for module in cell.modules())
