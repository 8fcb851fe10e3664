"""The persistent kernels against the plain loop, in Triton's interpreter (see `conftest`).

Shapes: B batch, T time (tokens), E input, C context, H hidden.
"""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from test_graphs import results
from torch import Tensor, nn

from newllm.models.cell import Cell, ContextCell
from newllm.models.gating import Additive, LSTMGating
from newllm.models.layer import State
from newllm.models.multihead import MultiHeadCell
from newllm.models.quantization import Quantized
from newllm.models.recurrence import reference
from newllm.models.recurrence.kernel.chunk import read_chunk
from newllm.models.recurrence.persistent import Persistent, why_not
from newllm.models.recurrence.reference import Chunk, DropoutMasks, roll
from newllm.models.skip import SkipCell

E, C, H, T = 5, 7, 18, 5


def make_cell(*sizes: int, **settings: Any) -> ContextCell:
    """A cell with biases, scales and shifts of its own."""
    torch.manual_seed(0)
    settings = {"gating": LSTMGating, "normalization": nn.LayerNorm} | settings
    settings |= zip(("context_dim", "hidden_dim", "num_layers"), sizes or (C, H, 3), strict=True)
    kind = MultiHeadCell if "num_heads" in settings else ContextCell
    cell: ContextCell = kind(E, **settings)
    for parameter in cell.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return cell


def flags(batch_size: int, num_steps: int) -> list[Tensor]:
    """Padding and resets."""
    torch.manual_seed(1)
    return [torch.rand(batch_size, num_steps) < 0.3 for _ in range(2)]


def chunk_of(cell: ContextCell, batch_size: int = 2, num_steps: int = T) -> Chunk:
    weight = next(cell.parameters())
    inputs_BTE = torch.randn(batch_size, num_steps, E).to(weight)
    return Chunk(inputs_BTE, cell.initial_state(batch_size))


def used(carry: Persistent) -> bool:
    """Whether all calls so far were the kernels', so that tests compare what they say."""
    return set(carry._reasons.values()) == {None}


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-4) -> None:
    """Compare by the norm of the difference, relative to the norm."""
    for one, other in zip(found, expected, strict=True):
        difference, size = (float(each.double().norm()) for each in (one - other, other))
        assert difference <= tolerance * (size + 1e-3)


KINDS = [*product(("plain", "residual"), (Additive, LSTMGating), (nn.Identity, nn.LayerNorm))]


@pytest.mark.parametrize(("fnn", "gating", "normalization"), KINDS)
@pytest.mark.parametrize(
    ("num_layers", "dropout", "clip"), [(1, 0.0, None), (1, 0.4, 0.3), (3, 0.4, None)]
)
def test_values_and_gradients(
    fnn: str,
    gating: Any,
    normalization: Any,
    num_layers: int,
    dropout: float,
    clip: float | None,
) -> None:
    cell = make_cell(
        *(C, H, num_layers), fnn=fnn, gating=gating, normalization=normalization,
        dropout=dropout, context_clip=clip,
    )  # fmt: skip
    carry = Persistent()
    both = [results(read, cell, 3, T, flags=flags(3, T)) for read in (carry, roll)]
    assert used(carry)
    assert_near(*both)


@pytest.mark.parametrize(("fnn", "gating", "normalization"), KINDS)
@pytest.mark.parametrize(
    ("context_dim", "num_heads", "clip"), [(6, 1, None), (12, 3, 0.3), (40, 2, None)]
)
def test_heads(
    fnn: str, gating: Any, normalization: Any, context_dim: int, num_heads: int, clip: float | None
) -> None:
    """One, no power of two, and wider than the least width of a kernel."""
    cell = make_cell(
        *(context_dim, H, 2), num_heads=num_heads, fnn=fnn, gating=gating,
        normalization=normalization, dropout=0.4, context_clip=clip,
    )  # fmt: skip
    carry = Persistent()
    both = [results(read, cell, 3, T, flags=flags(3, T)) for read in (carry, roll)]
    assert used(carry)
    assert_near(*both)


def test_several_programs_and_blocks_of_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths beyond 16 and 32, which are padded, and no multiple of the rows of a program."""
    monkeypatch.setattr(reference, "MASK_BLOCK", 4)
    cell, carry = make_cell(20, 33, 2, dropout=0.3, fnn="residual"), Persistent()
    assert_near(*(results(read, cell, 18, 9, flags=flags(18, 9)) for read in (carry, roll)))
    assert used(carry)


@pytest.mark.parametrize("read", [Persistent(), partial(read_chunk, dtype=torch.float32)])
def test_one_step(read: Any) -> None:
    """By the plain loop, which is quicker, and by the kernels."""
    cell = make_cell(C, H, 1, dropout=0.3)
    assert_near(*(results(way, cell, 2, 1) for way in (read, roll)))


@pytest.mark.parametrize("which", [(), (0,), (1,)])
def test_either_flag_or_none(which: tuple[int, ...]) -> None:
    cell, carry = make_cell(C, H, 1), Persistent()
    chosen = [flag if i in which else None for i, flag in enumerate(flags(2, T))]
    assert_near(*(results(read, cell, 2, T, flags=chosen) for read in (carry, roll)))
    assert used(carry)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("fnn", ["plain", "residual"])
def test_bfloat16(fnn: str, autocast: bool) -> None:
    """The interpreter rounds towards zero, which at least doubles the errors of a GPU."""
    cell = make_cell(C, H, 2, fnn=fnn, dropout=0.3)
    if not autocast:
        cell.bfloat16()

    def read(cell: Cell, chunk: Chunk) -> tuple[Tensor, State]:
        assert isinstance(cell, ContextCell)
        return read_chunk(cell, chunk, torch.bfloat16)

    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        found, expected = (results(way, cell, 3, 2, flags=flags(3, 2)) for way in (read, roll))
    assert [each.dtype for each in found[1:]] == [each.dtype for each in expected[1:]]
    assert_near(found[:2], expected[:2], tolerance=0.03)
    grads = [torch.cat([grad.flatten() for grad in both[2:]]) for both in (found, expected)]
    assert_near(grads[:1], grads[1:], tolerance=0.15)  # some ReLU is near its edge


@pytest.mark.parametrize("wanted", ["inputs", "gating", "input", "all, twice"])
def test_only_wanted_gradients_are_computed(wanted: str) -> None:
    cell, carry = make_cell(), Persistent()
    inputs_BTE = torch.randn(2, T, E, requires_grad=wanted == "inputs")
    for name, parameter in cell.named_parameters():
        parameter.requires_grad_(wanted[:3] == "all" or name.startswith(f"{wanted}."))
    learned = [p for p in (inputs_BTE, *cell.parameters()) if p.requires_grad]
    both = []
    for read in (carry, roll):
        y_BTH, (after_BC,) = read(cell, Chunk(inputs_BTE, cell.initial_state(2)))
        loss = y_BTH.square().sum() + after_BC.sum()
        if "twice" in wanted:
            torch.autograd.grad(loss, learned, retain_graph=True)
        both.append([*torch.autograd.grad(loss, learned)])
    assert_near(*both)
    assert used(carry)


def test_a_layer_that_is_used_twice_gets_both_gradients() -> None:
    cell, carry = make_cell(), Persistent()
    cell.fnn.layers[1] = cell.fnn.layers[0]
    assert_near(*(results(read, cell, 2, T) for read in (carry, roll)))
    assert used(carry)


def test_what_is_changed_before_the_backward_pass() -> None:
    """The caller's flags do not matter; a weight is an error."""
    cell, (pad_BT, reset_BT) = make_cell(C, H, 1), flags(2, T)
    chunk = chunk_of(cell)._replace(pad_BT=pad_BT, reset_BT=reset_BT)
    parameters = list(cell.parameters())
    grads = []
    for changes in (False, True):
        loss = Persistent()(cell, chunk)[1][0].square().sum()
        if changes:
            pad_BT.logical_not_()
            reset_BT.logical_not_()
        grads.append([*torch.autograd.grad(loss, parameters, retain_graph=True)])
    assert_near(*grads)
    with torch.no_grad():
        cell.input.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_without_gradients(off: Callable[[], Any]) -> None:
    """The first call may be an evaluation, and training goes on from there."""
    cell, carry = make_cell(C, H, 1), Persistent()
    with off():
        chunk = chunk_of(cell)
        assert_near(*([y, *after] for y, after in (read(cell, chunk) for read in (carry, roll))))
    assert_near(*(results(read, cell, 2, T) for read in (carry, roll)))
    assert used(carry)


def test_masks_follow_the_seed_and_draw_no_other_numbers() -> None:
    cell = make_cell(C, H, 1, dropout=0.5)
    inputs_BTE = torch.randn(2, T, E)
    masks = DropoutMasks.draw(cell, inputs_BTE)
    before = torch.get_rng_state()
    Persistent()(cell, Chunk(inputs_BTE, cell.initial_state(2), masks))
    assert torch.equal(torch.get_rng_state(), before)


def hooked() -> ContextCell:
    cell = make_cell()
    cell.fnn.register_forward_hook(lambda *_: None)
    return cell


KNOWN_ONLY = "the kernel knows only a ContextCell or MultiHeadCell of built-in parts"
TYPES_ONLY = "the kernel takes weights of one type, float32 or bfloat16"
REFUSED: dict[str, tuple[Callable[[], ContextCell], str]] = {
    "skips": (partial(SkipCell, E, 8, hidden_dim=4, num_layers=1), KNOWN_ONLY),
    "quantized heads": (
        partial(make_cell, 8, H, 1, num_heads=2, normalization=partial(Quantized, levels=4)),
        KNOWN_ONLY,
    ),
    "a hook": (hooked, KNOWN_ONLY),
    "float64": (lambda: make_cell().double(), TYPES_ONLY),
    "float16": (lambda: make_cell().half(), TYPES_ONLY),
    "large": (
        partial(make_cell, 100, 512, 2),
        "its weights take 4108 KiB of the 227 KiB that a processor has for a program",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_kernels_refuse(name: str) -> None:
    build, reason = REFUSED[name]
    cell = build()
    assert why_not(cell, chunk_of(cell)) == reason


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    cell = make_cell()
    assert why_not(cell, chunk_of(cell)) == "the kernel takes a GPU"


def test_exact_products_take_a_second_copy_of_the_weights() -> None:
    cell = make_cell(64, 64, 4)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert why_not(cell, chunk_of(cell)) is None
    finally:
        torch.set_float32_matmul_precision(before)
    assert "take 236 KiB of the 227 KiB" in str(why_not(cell, chunk_of(cell)))


def test_another_recurrence_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    cell, carry = make_cell().double(), Persistent()
    for num_rows in (2, 3):
        assert_near(*(results(read, cell, num_rows, T) for read in (carry, roll)), tolerance=1e-9)
    line = f"ContextCell: recurrence=fused instead of persistent; {TYPES_ONLY}"
    told = capfd.readouterr().err.splitlines()
    assert [each for each in told if "persistent" in each] == [line]


def test_nothing_else_is_measured_as_the_kernels() -> None:
    cell = make_cell().double()
    with pytest.raises(ValueError, match=f"recurrence=persistent: {TYPES_ONLY}"):
        Persistent(strict=True)(cell, chunk_of(cell))


def test_a_kernel_that_is_wrong_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def wrong(cell: ContextCell, chunk: Chunk) -> tuple[Tensor, tuple[Tensor, ...]]:
        y_BTH, state = roll(cell, chunk)
        return 1.01 * y_BTH, state

    monkeypatch.setattr("newllm.models.recurrence.persistent._read", wrong)
    cell, carry = make_cell(), Persistent()
    assert_near(*(results(read, cell, 2, T) for read in (carry, roll)))
    assert "its steps give other values than the cell" in capfd.readouterr().err


def test_copies_start_anew() -> None:
    carry = Persistent(compile=False)
    cell = make_cell()
    carry(cell, chunk_of(cell))
    for other in (copy.deepcopy(carry), pickle.loads(pickle.dumps(carry))):
        assert not other._reasons
        assert other._settings == (False, False)


COMPILE = """
import sys
import triton
import torch
from torch import nn
from triton.backends.compiler import GPUTarget
from newllm.models.cell import Cell, ContextCell
from newllm.models.gating import Additive, LSTMGating
from newllm.models.multihead import MultiHeadCell
from newllm.models.recurrence.kernel.backward import backward
from newllm.models.recurrence.kernel.forward import forward
from newllm.models.recurrence.kernel.weights import Weights, bytes_needed

width, num_layers, architecture, num_heads = map(int, sys.argv[1:5])
settings = {"context_dim": width, "hidden_dim": width, "num_layers": num_layers}
gating = {"gated": LSTMGating, "additive": Additive}[sys.argv[6]]
settings |= {"fnn": sys.argv[5], "gating": gating, "normalization": nn.LayerNorm}
settings |= {"context_clip": 1.0}
dtype, pointer = {"bf16": (torch.bfloat16, "*bf16"), "fp32": (torch.float32, "*fp32")}[sys.argv[7]]
if num_heads == 0:
    cell = ContextCell(8, **settings)
else:
    cell = MultiHeadCell(8, num_heads=num_heads, **settings)
settings = Weights(cell, dtype).settings | {"DROPS": True, "KEEPS": True}
options = {name: settings.pop(name) for name in ("num_warps", "num_stages")}
types = dict.fromkeys("TBCKH", "i32") | dict.fromkeys(("fnn_epsilon", "epsilon", "clip"), "fp32")
types |= {"flags_TB": "*i8", "masks_NTBH": "*fp32", "context_BC": "*fp32", "contexts_TBC": "*fp32"}
types |= {"outputs_TBH": "*fp32", "outputs_grad_TBH": "*fp32", "after_grad_BC": "*fp32"}
norms = "scales_LH", "shifts_LH", "scales_NK", "shifts_NK"
types |= dict.fromkeys((*norms, "grads_TBC"), "*fp32") | dict.fromkeys(settings, "constexpr")
for kernel in (forward, backward):
    signature = {name: types.get(name, pointer) for name in kernel.arg_names}
    constants = {name: settings[name] for name in kernel.arg_names if name in settings}
    source = triton.compiler.ASTSource(kernel, signature, constexprs=constants)
    target = GPUTarget("cuda", architecture, 32)
    memory = triton.compile(source, target=target, options=options).metadata.shared
    assert memory <= bytes_needed(cell, dtype), (memory, bytes_needed(cell, dtype))
"""


@pytest.mark.parametrize(
    ("width", "num_layers", "architecture", "num_heads", "fnn", "gating", "dtype"),
    [
        (32, 2, 90, 0, "residual", "gated", "bf16"),
        (32, 1, 90, 2, "plain", "additive", "fp32"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                *product(
                    (128,), (3,), (80, 90), (0,), ("plain", "residual"), ("gated",), ("bf16",)
                ),
                *product(
                    (96,), (2,), (80, 90), (1, 3), ("plain", "residual"), ("gated",), ("bf16",)
                ),
                *product((64,), (1,), (80, 90), (4,), ("plain",), ("additive", "gated"), ("fp32",)),
            )
        ),
    ],
)
def test_the_kernels_compile_for_a_gpu(
    width: int,
    num_layers: int,
    architecture: int,
    num_heads: int,
    fnn: str,
    gating: str,
    dtype: str,
) -> None:
    """What the interpreter allows the compiler may refuse; the memory is what was planned."""
    subprocess.run(
        [
            sys.executable,
            "-c",
            COMPILE,
            *map(str, (width, num_layers, architecture, num_heads)),
            *(fnn, gating, dtype),
        ],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        check=True,
    )
