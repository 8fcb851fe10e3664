"""The native code against the plain loop: at any size, in any memory, and for which cells.

That a recurrence gives the plain loop's values and gradients is a part of the contract of a cell,
which `test_contract` asks.

Shapes: B batch, T time (tokens), E input, C context, H hidden, V vocabulary.
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
from small_models import context_model, hybrid, mingru_model, transformer
from torch import Tensor, nn
from torch.nn.utils import prune

from newllm.data.batch import IGNORE
from newllm.models import language_model
from newllm.models.cell import ContextCell
from newllm.models.contract import check_cell
from newllm.models.fnn import FNNS
from newllm.models.gating import Additive, Gating, LSTMGating
from newllm.models.initialization import variance_preserving
from newllm.models.language_model import LanguageModel
from newllm.models.layer import State
from newllm.models.recurrence import reference
from newllm.models.recurrence.fused import FEW_STEPS, Fused
from newllm.models.recurrence.native.buffers import Buffers, Memory
from newllm.models.recurrence.native.weights import has_native_code
from newllm.models.recurrence.reference import Chunk, DropoutMasks, Recurrence, Reference

B, E, C, H = 3, 5, 4, 6
BLOCK = 4  # steps of a segment here
MANY_STEPS = 2 * BLOCK + 1

GATINGS = (Additive, LSTMGating)
NORMALIZATIONS: dict[str, Callable[[int], nn.Module]] = {
    "none": nn.Identity,
    "layernorm": nn.LayerNorm,
    "layernorm_without_weights": partial(nn.LayerNorm, elementwise_affine=False),
    "layernorm_without_bias": partial(nn.LayerNorm, bias=False),
}


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (language_model, reference):
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
        E, C, H, 3, dropout, fnn, clip, gating, NORMALIZATIONS[normalization]
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
    carry: Recurrence,
    cell: ContextCell,
    inputs: tuple[Tensor, Tensor],
    pad_BT: Tensor | None = None,
    reset_BT: Tensor | None = None,
    found: list[Tensor] | None = None,
) -> list[Tensor]:
    """Outputs, the last context, and the gradients of a loss that weighs every element otherwise.

    Outputs at padding mean nothing, so they are zeroed.
    """
    inputs_BTE, context_BC = (x.detach().requires_grad_() for x in inputs)
    torch.manual_seed(3)
    masks = DropoutMasks.draw(cell, inputs_BTE)
    outputs_BTH, (after_BC,) = carry(
        cell, Chunk(inputs_BTE, (context_BC,), masks, pad_BT, reset_BT, found)
    )
    if pad_BT is not None:
        outputs_BTH = outputs_BTH.masked_fill(pad_BT[:, :, None], 0)
    torch.manual_seed(4)
    loss = sum((x * torch.randn_like(x)).sum() for x in (outputs_BTH, after_BC))
    assert isinstance(loss, Tensor)
    loss.backward()
    grads = [p.grad for p in (inputs_BTE, context_BC, *cell.parameters())]
    cell.zero_grad()
    assert all(grad is not None for grad in grads)
    return [outputs_BTH, after_BC, *(g for g in grads if g is not None)]


@pytest.mark.parametrize("fnn", FNNS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_any_normalization_equals_the_plain_loop(normalization: str, fnn: str) -> None:
    for gating, clip in product(GATINGS, (None, 0.5)):
        check_cell(make_cell(gating, normalization, fnn, clip))


def make_sized_cell(
    sizes: tuple[int, int, int, int], fnn: str, gating: type[Gating], clip: float | None
) -> ContextCell:
    embedding_dim, context_dim, hidden_dim, num_layers = sizes
    return ContextCell(
        embedding_dim,
        context_dim,
        hidden_dim,
        num_layers,
        0.2,
        fnn,
        clip,
        gating,
        nn.LayerNorm if clip is None else nn.Identity,
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
            outputs_BTH, (after_BC,) = Fused()(
                self.cell, Chunk(embedded_BTE, (context_BC,), masks, pad_BT, reset_BT)
            )
            return outputs_BTH.masked_fill(pad_BT[:, :, None], 0), after_BC

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        weights = {f"cell.{name}": tensor for name, tensor in zip(names, tensors[2:], strict=True)}
        outputs_BTH, after_BC = torch.func.functional_call(Carried(), weights, tensors[:2])
        return outputs_BTH, after_BC

    inputs = (*make_input(FEW_STEPS), *cell.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_equals_the_reference_in_float32_at_real_sizes() -> None:
    def gradients(carry: Recurrence) -> list[Tensor]:
        torch.manual_seed(0)
        model = context_model(
            100, 256, context_dim=512, hidden_dim=512, num_layers=9, dropout=0.1,
            gating=LSTMGating, normalization=nn.LayerNorm, recurrence=carry,
        )  # fmt: skip
        tokens_BT = torch.randint(4, 100, (4, 9))
        model(tokens_BT)[0].logsumexp(-1).sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for grad, expected in zip(gradients(Fused()), gradients(Reference()), strict=True):
        assert float((grad - expected).norm()) <= 1e-5 * float(expected.norm())


def test_which_cells_have_native_code() -> None:
    """Else the tests above would compare less than they say."""
    for gating, normalization, fnn in product(GATINGS, NORMALIZATIONS, FNNS):
        assert has_native_code(make_cell(gating, normalization, fnn))


class Doubled(LSTMGating):
    """A gating that the native code does not know."""

    def forward(self, hidden_BH: Tensor, context_BC: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        context_BC, gates = super().forward(hidden_BH, context_BC)
        return 2 * context_BC, gates


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
    "another gating": lambda cell: setattr(cell, "gating", Doubled(H, C).double()),
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
    cell, carry = make_cell(), Fused()
    inputs_BTE, context_BC = make_input(MANY_STEPS)
    torch.manual_seed(3)
    masks = DropoutMasks.draw(cell, inputs_BTE)
    expected = Reference()(cell, Chunk(inputs_BTE, (context_BC,), masks))
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            found = carry(cell, Chunk(inputs_BTE, (context_BC,), masks))
            torch.testing.assert_close(found, expected)
    # What inference mode left behind must not be in the way of training.
    found = carry(cell, Chunk(inputs_BTE, (context_BC,), masks))
    torch.testing.assert_close(found, expected)
    found[0].sum().backward()


def test_what_the_caller_changes_after_the_forward_pass_does_not_matter() -> None:
    cell, inputs = make_cell(dropout=0), make_input(FEW_STEPS)
    grads = []
    for changes in (False, True):
        pad_BT, reset_BT = make_flags(FEW_STEPS)
        outputs_BTH, (after_BC,) = Fused()(
            cell, Chunk(inputs[0], inputs[1:], None, pad_BT, reset_BT)
        )
        loss = outputs_BTH.square().sum() + after_BC.square().sum()
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
from newllm.models.cell import ContextCell
from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.reference import Chunk
torch.set_num_threads(2)
cell = ContextCell(8, 32, 32, 2)
outputs_BTH, _ = Fused()(cell, Chunk(torch.ones(4, 9, 8), cell.initial_state(4)))
outputs_BTH.sum().backward()
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
        loss, expected_loss = (
            carry(cell, Chunk(embedded_BTE, (context_BC,)))[0].sum()
            for carry in (Fused(), Reference())
        )
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
                carry(cell, Chunk(embedded_BTE, (context_BC,)))[0].sum(),
                (embedded_BTE, context_BC),
            )
            for carry in (Reference(), Fused())
        ]
        torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("gating", GATINGS)
def test_a_weight_changed_before_backward_is_an_error(gating: type[Gating]) -> None:
    cell = make_cell(gating)
    embedded_BTE, context_BC = make_input(FEW_STEPS)
    outputs_BTH, _ = Fused()(cell, Chunk(embedded_BTE, (context_BC,)))
    with torch.no_grad():
        cell.input.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs_BTH.sum().backward()


def test_two_graphs_alive_at_once_do_not_share_buffers() -> None:
    cell, carry = make_cell(dropout=0), Fused()
    embedded_BTE, context_BC = make_input(FEW_STEPS)

    def gradient(outputs_BTH: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad((outputs_BTH * outputs_BTH).sum(), cell.input.weight)
        return grad

    state: State = (context_BC,)
    first_BTH, _ = carry(cell, Chunk(embedded_BTE, state))
    kept_BTH = first_BTH.clone()
    second_BTH, _ = carry(cell, Chunk(2 * embedded_BTE, state))
    gradient(second_BTH)
    expected_BTH, _ = Reference()(cell, Chunk(embedded_BTE, state))
    torch.testing.assert_close(gradient(first_BTH), gradient(expected_BTH))
    assert torch.equal(first_BTH, kept_BTH)


def test_memory_is_used_again() -> None:
    memory = Memory()
    matrix = (buffers := Buffers(memory, torch.float32)).matrix(3, 5)
    assert matrix.shape == (3, 5)
    place = matrix.data_ptr()
    assert Buffers(memory, torch.float32).matrix(3, 5).data_ptr() != place
    del buffers, matrix
    assert place in {Buffers(memory, torch.float32).matrix(4, 4).data_ptr() for _ in range(2)}


def score_gradients(model: LanguageModel, recompute: bool, num_tokens: int) -> list[Tensor]:
    """Losses of several blocks with padding and resets, their state, and the gradients."""
    torch.manual_seed(0)
    tokens_BT = torch.randint(4, 20, (4, num_tokens + 1))
    tokens_BT[0, -2:] = 0
    reset_BT = torch.rand(4, num_tokens) < 0.2
    model.recompute = recompute
    torch.manual_seed(1)
    targets_BT = tokens_BT[:, 1:].masked_fill(tokens_BT[:, 1:] == 0, IGNORE)
    loss_BT, correct_BT, state = model.score(tokens_BT[:, :-1], targets_BT, None, reset_BT)
    loss_BT.sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return [loss_BT, correct_BT, *state, *grads]


KINDS: dict[str, Callable[..., LanguageModel]] = {
    "context": partial(context_model, gating=LSTMGating, positions="learned", max_length=40),
    "three lanes": partial(context_model, gating=Additive, context_clip=0.3, fnn="residual"),
    "own gating": partial(context_model, gating=Doubled),
    "hybrid": hybrid,
    "transformer": transformer,
    "mingru": mingru_model,
}


@pytest.mark.parametrize("kind", KINDS)
def test_recompute_changes_no_number(kind: str) -> None:
    torch.manual_seed(0)
    settings = {"recurrence": Fused()} if "transformer" != kind != "mingru" else {}
    model = KINDS[kind](20, **settings).double()
    found, expected = (score_gradients(model, recompute, MANY_STEPS) for recompute in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_recompute_draws_again_what_it_drew(kind: str) -> None:
    torch.manual_seed(0)
    settings = {"recurrence": Fused()} if "transformer" != kind != "mingru" else {}
    model = KINDS[kind](20, dropout=0.3, embedding_dropout=0.4, output_dropout=0.4, **settings)
    model = model.double()
    # One block, so that both draw alike.
    found, expected = (score_gradients(model, recompute, BLOCK) for recompute in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fnn", FNNS)
@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("batch_size", [3, 4])  # one that fills the lanes, and one that does not
def test_a_second_reading_makes_use_of_the_first(
    gating: type[Gating], fnn: str, batch_size: int
) -> None:
    torch.manual_seed(6)
    for sizes, clip in product([(8, 20, 33, 3), (8, 16, 16, 1)], (None, 0.3)):
        cell = make_sized_cell(sizes, fnn, gating, clip).double()
        inputs = (
            torch.randn(batch_size, MANY_STEPS, 8).double(),
            torch.randn(batch_size, sizes[1]).double(),
        )
        flags = tuple(torch.rand(batch_size, MANY_STEPS) < 0.3 for _ in range(2))
        contexts: list[Tensor] = []
        with torch.no_grad():
            torch.manual_seed(3)
            masks = DropoutMasks.draw(cell, inputs[0])
            Fused()(cell, Chunk(inputs[0], inputs[1:], masks, *flags, contexts))
        assert len(contexts) == 3
        found = results(Fused(), cell, inputs, *flags, contexts)
        assert not contexts
        expected = results(Reference(), cell, inputs, *flags)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["context", "own gating", "mingru"])
def test_recompute_holds_a_fraction_of_the_memory(kind: str) -> None:
    def bytes_held(recompute: bool) -> int:
        model = KINDS[kind](20, recompute=recompute, max_length=200).eval()
        for layer in model.recurrent_layers:
            layer.recurrence = Fused()
        tokens_BT = torch.randint(4, 20, (B, 40 * BLOCK))
        gc.collect()
        before = {id(tensor) for tensor in _live_tensors()}
        loss_BT, _, _ = model.score(tokens_BT, tokens_BT)
        assert loss_BT.requires_grad
        storages = [t.untyped_storage() for t in _live_tensors() if id(t) not in before]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    assert bytes_held(recompute=True) < bytes_held(recompute=False) / 6


def _live_tensors() -> list[Tensor]:
    return [thing for thing in gc.get_objects() if type(thing) is Tensor]


def train(precision: Callable[[], AbstractContextManager[object]], recompute: bool) -> float:
    """Learn to repeat the token before, for a few steps; the loss at the end in nats."""
    torch.manual_seed(0)
    model = context_model(
        8, 16, context_dim=16, hidden_dim=16, num_layers=2, gating=LSTMGating,
        normalization=nn.LayerNorm, recurrence=Fused(), recompute=recompute,
        initialization=variance_preserving,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        tokens_BT = torch.randint(1, 8, (16, 9))
        with precision():
            loss_BT, _, _ = model.score(tokens_BT, tokens_BT.roll(1, dims=1))
        loss = loss_BT[:, 1:].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("recompute", [False, True])
def test_trains_in_bfloat16(recompute: bool) -> None:
    bfloat16 = partial(torch.autocast, "cpu", torch.bfloat16)
    assert train(bfloat16, recompute) < 0.5
    assert train(nullcontext, recompute) < 0.5
