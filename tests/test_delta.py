"""The delta memories against their equations, written out as loops.

Shapes: B batch, T time (tokens), N heads, J writes of a token, K width of a head, P projected.
"""

import re
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from newllm.models.delta import DeltaCell
from newllm.models.delta_rule import MOST_WRITES, delta_rule
from newllm.models.linear_delta import LinearDelta, LinearDeltaStep
from newllm.models.packing import Packing
from newllm.models.recurrence.parallel import Parallel
from newllm.models.recurrence.reference import Chunk, Reference


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def written(memory_KK: Tensor, key_K: Tensor, value_K: Tensor, beta: Tensor) -> Tensor:
    """The product with a Householder factor, and what is added: another form of the equation."""
    factor_KK = torch.eye(len(key_K), dtype=torch.double) - beta * torch.outer(key_K, key_K)
    return memory_KK @ factor_KK + beta * torch.outer(value_K, key_K)


@pytest.mark.parametrize("forget_bias", [4.0, -1.0, None])
def test_a_step_of_the_cell_is_its_equations(forget_bias: float | None) -> None:
    torch.manual_seed(0)
    cell = DeltaCell(3, 4, 5, 2, num_heads=2, num_factors=2, forget_bias=forget_bias).double()
    x_BE, memory_BNKK = random(2, 3), random(2, 2, 2, 2, seed=2)
    hidden_BH, (after_BNKK,), gates = cell(x_BE, (memory_BNKK,))
    for row, (x_E, memory_NKK) in enumerate(zip(x_BE, memory_BNKK, strict=True)):
        query_NK = F.normalize(cell.query(x_E).view(2, 2), dim=-1)
        reads = [memory @ query for memory, query in zip(memory_NKK, query_NK, strict=True)]
        norms = [read / (1 + read.square().mean()).sqrt() for read in reads]
        hidden_H = cell.fnn(cell.input(torch.cat((x_E, *norms))))
        torch.testing.assert_close(hidden_BH[row], hidden_H)
        key_JNK, value_JNK = (part(hidden_H).view(2, 2, 2) for part in (cell.key, cell.value))
        beta_JN = 2 * cell.beta(hidden_H).view(2, 2).sigmoid()
        forget_N = torch.ones(2, dtype=torch.double)
        if cell.forget_gate is not None:
            forget_N = (forget_bias + cell.forget_gate(hidden_H)).sigmoid()
            torch.testing.assert_close(gates["forget"][row], forget_N)
        torch.testing.assert_close(gates["beta"][row], beta_JN)
        for head in range(2):
            memory_KK = forget_N[head] * memory_NKK[head]
            for j in range(2):
                key_K = key_JNK[j, head] / key_JNK[j, head].norm()
                memory_KK = written(memory_KK, key_K, value_JNK[j, head], beta_JN[j, head])
            torch.testing.assert_close(after_BNKK[row, head], memory_KK)


def test_gradients_of_a_step_of_the_cell_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    cell = DeltaCell(2, 4, 3, num_layers=2, num_heads=2, num_factors=2, fnn="residual").double()

    def step(x_BE: Tensor, memory_BNKK: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        names = (name for name, _ in cell.named_parameters())
        named = dict(zip(names, weights, strict=True))
        hidden_BH, state, _ = torch.func.functional_call(cell, named, (x_BE, (memory_BNKK,)))
        return hidden_BH, *state

    given = random(2, 2), random(2, 2, 2, 2, seed=2)
    inputs = [tensor.requires_grad_() for tensor in given]
    assert torch.autograd.gradcheck(step, (*inputs, *cell.parameters()), fast_mode=True)


@pytest.mark.parametrize("newton", [False, True])
def test_the_cell_is_the_same_for_all_tokens_at_once(newton: bool) -> None:
    torch.manual_seed(0)
    cell = DeltaCell(3, 4, 5, num_layers=2, num_heads=2, num_factors=2).double()
    results = []
    for recurrence in (Reference(), Parallel(newton=newton)):
        x_BTE = random(2, 12, 3).requires_grad_()
        start_BNKK = random(2, 2, 2, 2, seed=2).requires_grad_()
        y_BTH, (after_BNKK,) = recurrence(cell, Chunk(x_BTE, (start_BNKK,)))
        loss = (y_BTH * random(2, 12, 5, seed=3)).sum() + after_BNKK.square().sum()
        grads = torch.autograd.grad(loss, [x_BTE, start_BNKK, *cell.parameters()])
        results.append([y_BTH, after_BNKK, *grads])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("num_factors", [1, 2, 3])
def test_a_key_that_is_written_with_beta_1_is_read_exactly(num_factors: int) -> None:
    key, value = (
        F.normalize(random(1, 1, 4, num_factors, 6), dim=-1),
        random(1, 1, 4, num_factors, 6),
    )
    beta = torch.ones(1, 1, 4, num_factors, dtype=torch.double)
    memory = random(1, 1, 6, 6, seed=3)
    read, after = delta_rule(
        key[:, :, :, -1], key, value, beta, memory, torch.zeros(1, 4, dtype=torch.long)
    )
    torch.testing.assert_close(read, value[:, :, :, -1])
    torch.testing.assert_close(after[0, 0] @ key[0, 0, -1, -1], value[0, 0, -1, -1])


RULE_SIZES = [(1, 1), (5, 1), (MOST_WRITES, 1), (2 * MOST_WRITES + 3, 1), (50, 2), (45, 3)]


def rule_arguments(num_tokens: int, num_writes: int, resets: bool) -> list[Tensor]:
    shape = 2, 3, num_tokens, num_writes
    query_BNTK = F.normalize(random(2, 3, num_tokens, 4), dim=-1)
    key_BNTJK = F.normalize(random(*shape, 4, seed=2), dim=-1)
    beta_BNTJ = 2 * random(*shape, seed=4).sigmoid()
    reset_BT = torch.rand(2, num_tokens, generator=torch.Generator().manual_seed(5)) < 0.1
    segment_BT = (reset_BT & resets).cumsum(1)
    value_BNTJK, memory_BNKK = random(*shape, 4, seed=3), random(2, 3, 4, 4, seed=6)
    return [query_BNTK, key_BNTJK, value_BNTJK, beta_BNTJ, memory_BNKK, segment_BT]


def naive_rule(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor, memory: Tensor, segment_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Write by write, row by row, and head by head."""
    reads, memories = torch.zeros_like(query), torch.zeros_like(memory)
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            memory_KK, segment = memory[row, head], 0
            for t in range(query.shape[2]):
                if segment_BT[row, t] != segment:
                    memory_KK, segment = torch.zeros_like(memory_KK), int(segment_BT[row, t])
                for j in range(key.shape[3]):
                    at = row, head, t, j
                    memory_KK = written(memory_KK, key[at], value[at], beta[at])
                reads[row, head, t] = memory_KK @ query[row, head, t]
            memories[row, head] = memory_KK
    return reads, memories


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(("num_tokens", "num_writes"), RULE_SIZES)
def test_chunks_of_the_rule_equal_the_loop(num_tokens: int, num_writes: int, resets: bool) -> None:
    given = rule_arguments(num_tokens, num_writes, resets)
    assert resets <= (num_tokens == 1 or bool(given[-1].any()))
    results = []
    for rule in (delta_rule, naive_rule):
        *inputs, segment_BT = [tensor.clone() for tensor in given]
        inputs = [tensor.requires_grad_() for tensor in inputs]
        outputs = rule(*inputs, segment_BT)
        weights = [random(*output.shape, seed=7) for output in outputs]
        grads = torch.autograd.grad(outputs, inputs, weights, materialize_grads=True)
        results.append([*outputs, *grads])
    torch.testing.assert_close(*results)


def test_a_layer_of_the_linear_rule_is_its_equations() -> None:
    torch.manual_seed(0)
    num_factors, num_heads, width = 2, 2, 3
    step = LinearDeltaStep(6, num_heads, num_factors, 3, negative_eigenvalues=True).double()
    x_BTH = random(2, 5, 6)
    memory_BNKK, recent_BWP = random(2, 2, 3, 3, seed=2), random(2, 2, 30, seed=3)
    y_BTH, after, _ = step(x_BTH, memory_BNKK, recent_BWP, Packing.of(x_BTH, None, None))
    for row in range(2):
        projected_SP = torch.cat((recent_BWP[row], x_BTH[row] @ step.project.weight.T))
        memories = list(memory_BNKK[row])
        for t in range(5):
            convolved_P = sum(step.conv[distance] * projected_SP[2 + t - distance]
                              for distance in range(3))  # fmt: skip
            assert isinstance(convolved_P, Tensor)
            vectors = F.silu(convolved_P).view(1 + 2 * num_factors, num_heads, width)
            beta_JN = 2 * step.beta(x_BTH[row, t]).view(num_factors, num_heads).sigmoid()
            reads = []
            for head in range(num_heads):
                for j in range(num_factors):
                    key_K = vectors[1 + j, head] / vectors[1 + j, head].norm()
                    value_K = vectors[1 + num_factors + j, head]
                    memories[head] = written(memories[head], key_K, value_K, beta_JN[j, head])
                read_K = memories[head] @ (vectors[0, head] / vectors[0, head].norm())
                reads.append(read_K / (read_K.square().mean() + 1e-5).sqrt())
            torch.testing.assert_close(y_BTH[row, t], step.output.weight @ torch.cat(reads))
        torch.testing.assert_close(after[row], torch.stack(memories))


@pytest.mark.parametrize("negative", [True, False])
def test_the_sign_of_eigenvalues(negative: bool) -> None:
    step = LinearDeltaStep(4, 2, 1, 1, negative_eigenvalues=negative).double()
    x_BTH = 100 * random(4, 50, 4)  # of betas near their largest value
    betas = step.largest_beta * step.beta(x_BTH).sigmoid()
    assert bool((1 - betas < -0.9).any()) == negative


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            partial(DeltaCell, 4, 6, 5, num_layers=1, num_heads=4),
            "model.num_heads=4: must divide model.context_dim=6",
        ),
        (
            partial(DeltaCell, 4, 6, 5, num_layers=1, num_heads=2, num_factors=0, fnn="deep"),
            "model.num_factors=0: must be at least 1\n"
            "model.fnn=deep: no such option; options: plain, residual",
        ),
        (
            partial(LinearDelta, 4, 6, 1, 6, num_heads=4, conv_width=0),
            "model.conv_width=0: must be at least 1\n"
            "model.num_heads=4: must divide model.hidden_dim=6",
        ),
    ],
)
def test_faults(build: partial[object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        build()


def test_descriptions_and_states() -> None:
    cell = DeltaCell(6, 8, 5, num_layers=2, num_heads=2, num_factors=3)
    assert cell.description == "delta C8 heads2 H5 L2 E6 factors3"
    deep = DeltaCell(6, 8, 5, num_layers=2, num_heads=2, fnn="residual")
    forgets = DeltaCell(6, 8, 5, num_layers=2, num_heads=2, forget_bias=1.0)
    assert forgets.description == "delta C8 heads2 H5 L2 E6 forget1"
    assert deep.description == "delta C8 heads2 H5 L2 E6 residual"
    assert cell.initial_state(3)[0].shape == (3, 2, 4, 4)
    layer = LinearDelta(6, 8, 2, 12, num_heads=2, num_factors=2, negative_eigenvalues=False)
    assert layer.description == "linear_delta E6 H8 heads2 L2 F12 factors2 positive"
    assert layer.state_bytes(1) == layer.state_bytes(99) == 4 * 2 * (2 * 4 * 4 + 3 * 5 * 8)
