"""Cells with other contexts than one vector, against plain equations, and their settings.

Shapes: B batch, E input, C context, H hidden.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as F

from newllm.config.build import instantiate
from newllm.data.tokenizer import PAD
from newllm.models.cell import Cell, ContextCell
from newllm.models.contract import check_layer
from newllm.models.gating import LSTMGating
from newllm.models.hierarchy import HierarchyCell
from newllm.models.language_model import LanguageModel
from newllm.models.multihead import MultiHeadCell
from newllm.models.quantization import Quantized
from newllm.models.readout import Readout
from newllm.models.recurrence.parallel import Parallel
from newllm.models.recurrence.reference import Chunk, Reference
from newllm.models.recurrent import Recurrent
from newllm.models.sizes import num_parameters
from newllm.models.skip import SkipCell
from newllm.models.stacked import StackedCell

B, E, C, H, L = 3, 5, 6, 7, 2
plain: dict[str, Any] = {"context_dim": C, "hidden_dim": H, "num_layers": L}
gated = {**plain, "gating": LSTMGating, "normalization": nn.LayerNorm, "context_clip": 1.5}
CELLS: dict[str, partial[Cell]] = {
    "multihead": partial(MultiHeadCell, E, num_heads=2),
    "clocked": partial(HierarchyCell, E, periods=[1, 3, 4]),
    "learned": partial(HierarchyCell, E, periods=[1, 3], rates="learned"),
    "skip_add": partial(SkipCell, E, skip_steps=3),
    "skip_read": partial(SkipCell, E, skip_steps=3, skip="read"),
    "stacked": partial(StackedCell, E, cell=ContextCell),
    "stacked_plain": partial(StackedCell, E, cell=ContextCell, num_cells=3, shortcuts=False),
}


def factory(name: str) -> partial[Cell]:
    """What makes the cell from the width of its input and other settings."""
    return partial(CELLS[name].func, **CELLS[name].keywords)


def make(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    cell = CELLS[name](**settings)
    for parameter in cell.parameters():  # away from LayerNorm's 1 and 0, which would hide faults
        nn.init.normal_(parameter, std=0.6)
    return cell.double()


def outputs_and_contexts(cell: Cell, inputs_BTE: Tensor) -> tuple[Tensor, Tensor]:
    """By the layer that users have: outputs [B, T, H] and, of each token, the whole state."""
    rollout = Recurrent(E, lambda _: cell, Reference()).trace(inputs_BTE)
    return rollout.outputs_BTD, rollout.contexts_BTC


# The equations once more, for one sentence, on dicts of weights.


class Weights:
    """The weights of a cell by name, below a prefix."""

    def __init__(self, cell: nn.Module, prefix: str = "") -> None:
        self.cell, self.prefix = cell, prefix

    def under(self, prefix: str) -> "Weights":
        return Weights(self.cell, f"{self.prefix}{prefix}.")

    def of(self, name: str) -> np.ndarray:
        return self.cell.get_parameter(self.prefix + name).detach().numpy()

    def linear(self, name: str, *vectors: np.ndarray) -> np.ndarray:
        return self.of(f"{name}.weight") @ np.concatenate(vectors) + self.of(f"{name}.bias")

    def norm(self, name: str, vector: np.ndarray) -> np.ndarray:
        centred = (vector - vector.mean()) / np.sqrt(vector.var() + 1e-5)
        return np.clip(centred * self.of(f"{name}.weight") + self.of(f"{name}.bias"), -1.5, 1.5)

    def hidden(self, *vectors: np.ndarray) -> np.ndarray:
        first = np.maximum(self.linear("input", *vectors), 0)
        return np.maximum(self.linear("fnn.layers.0", first), 0)

    def updated(self, context: np.ndarray, *read: np.ndarray) -> np.ndarray:
        forget, write = (
            sigmoid(self.linear(f"{name}_gate", *read)) for name in ("forget", "input")
        )
        return forget * context + write * self.linear("delta", *read)


def sigmoid(vector: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-vector))


def multihead(weights: Weights, inputs: np.ndarray) -> list[np.ndarray]:
    heads, seen = [np.zeros(3), np.zeros(3)], []
    for x in inputs:
        h = weights.hidden(x, *heads)
        heads = [
            weights.norm(
                f"normalization.parts.{n}",
                weights.under(f"gating.heads.{n}").updated(own, h, own),
            )
            for n, own in enumerate(heads)
        ]
        seen.append(np.concatenate(heads))
    return seen


def hierarchy(weights: Weights, inputs: np.ndarray, rates: Any) -> list[np.ndarray]:
    context, seen = np.zeros(C), []
    for t, x in enumerate(inputs):
        h = weights.hidden(x, context)
        parts = np.split(weights.under("gating").updated(context, h), len(rates(t)))
        candidates = [weights.norm(f"normalization.parts.{k}", u) for k, u in enumerate(parts)]
        rate = np.repeat(rates(t), C // len(parts))
        context = (1 - rate) * context + rate * np.concatenate(candidates)
        seen.append(context)
    return seen


def clocked(weights: Weights, inputs: np.ndarray) -> list[np.ndarray]:
    return hierarchy(weights, inputs, lambda t: [1.0, float(t % 3 == 0), float(t % 4 == 0)])


def learned(weights: Weights, inputs: np.ndarray) -> list[np.ndarray]:
    period = np.exp(weights.of("rates.log_period_K"))
    return hierarchy(weights, inputs, lambda t: 1 - np.exp(-1 / period))


def skip(weights: Weights, inputs: np.ndarray, adds: bool) -> list[np.ndarray]:
    contexts = [np.zeros(C)] * 3
    for x in inputs:
        latest, earlier = contexts[-1], contexts[-3]
        h = weights.hidden(x, latest) if adds else weights.hidden(x, earlier, latest)
        u = weights.under("gating").updated(latest, h)
        if adds:
            gate = sigmoid(weights.linear("shortcut.gate", h))
            u = (1 - gate) * u + gate * earlier
        contexts.append(weights.norm("normalization", u))
    # The state is the last three, the latest first.
    return [np.concatenate(contexts[t + 3 : t : -1]) for t in range(len(inputs))]


def stacked(weights: Weights, inputs: np.ndarray, num_cells: int, adds: bool) -> list[np.ndarray]:
    contexts, seen = [np.zeros(C)] * num_cells, []
    for x in inputs:
        h, after = x, []
        for number, own in enumerate(contexts):
            cell = weights.under(f"cells.{number}")
            h = cell.hidden(h, own)
            u = cell.under("gating").updated(own, h)
            if adds and number > 0:
                gate = sigmoid(weights.linear(f"shortcuts.{number - 1}.gate", h))
                u = (1 - gate) * u + gate * after[-1]
            after.append(cell.norm("normalization", u))
        contexts = after
        seen.append(np.concatenate(contexts))
    return seen


EQUATIONS: dict[str, Callable[[Weights, np.ndarray], list[np.ndarray]]] = {
    "multihead": multihead,
    "clocked": clocked,
    "learned": learned,
    "skip_add": partial(skip, adds=True),
    "skip_read": partial(skip, adds=False),
    "stacked": partial(stacked, num_cells=2, adds=True),
    "stacked_plain": partial(stacked, num_cells=3, adds=False),
}


@pytest.mark.parametrize("name", CELLS)
def test_contexts_follow_the_equations(name: str) -> None:
    cell = make(name, **gated)
    inputs_BTE = torch.randn(1, 9, E).double()
    _, contexts_BTC = outputs_and_contexts(cell, inputs_BTE)
    expected = np.stack(EQUATIONS[name](Weights(cell), inputs_BTE[0].numpy()))
    np.testing.assert_allclose(contexts_BTC[0].detach(), expected, atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_contract_by_the_plain_loop(name: str) -> None:
    cell = make(name, **gated | {"fnn": "residual", "dropout": 0.3})
    check_layer(Recurrent(E, lambda _: cell, Reference()))


@pytest.mark.parametrize("name", CELLS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    cell = make(name, **{**gated, "context_clip": None, "fnn": "residual"})
    inputs_BTE = torch.randn(2, 6, E).double().requires_grad_()
    start = cell.initial_state(2)
    floats = [part.normal_().requires_grad_() for part in start if part.is_floating_point()]

    def results(inputs_BTE: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        y_BTH, state = Reference()(cell, Chunk(inputs_BTE, start))
        return y_BTH, *(part for part in state if part.is_floating_point())

    assert torch.autograd.gradcheck(
        results, (inputs_BTE, *floats, *cell.parameters()), fast_mode=True
    )


@pytest.mark.parametrize("name", CELLS)
def test_all_tokens_at_once_give_what_the_plain_loop_gives(name: str) -> None:
    cell = make(name, **gated)
    chunk = Chunk(
        torch.randn(2, 12, E).double(),
        cell.initial_state(2),
        pad_BT=torch.rand(2, 12) < 0.3,
        reset_BT=torch.rand(2, 12) < 0.2,
    )
    results = []
    for carry in (Reference(), Parallel()):
        y_BTH, state = carry(cell, chunk)
        weights = [weight for weight in cell.parameters() if weight.requires_grad]
        loss = (y_BTH * ~chunk.pad_BT[..., None]).square().sum() + state[0].square().sum()
        results.append((loss, *torch.autograd.grad(loss, weights, allow_unused=True)))
    torch.testing.assert_close(results[1], results[0])


def test_one_head_reads_its_context_and_others_only_by_the_hidden_vector() -> None:
    cell = make("multihead", **{**gated, "context_clip": None})
    with torch.no_grad():
        cell.input.weight[:, E:] = 0  # the FNN reads no context: nothing mixes the heads
    inputs_BE = torch.randn(1, E).double()
    jacobian = torch.autograd.functional.jacobian(
        lambda context_BC: cell(inputs_BE, (context_BC,))[1][0], torch.randn(1, C).double()
    )[0, :, 0]
    assert jacobian[:3, :3].abs().min() > 0
    assert not jacobian[:3, 3:].any()
    assert not jacobian[3:, :3].any()


def test_a_clocked_context_stays_between_its_tokens_and_counts_real_ones() -> None:
    cell = make("clocked", **gated)
    inputs_BTE = torch.randn(2, 10, E).double()
    pad_BT = torch.zeros(2, 10, dtype=torch.bool)
    pad_BT[1, [1, 2, 5]] = True
    rollout = Recurrent(E, lambda _: cell, Reference()).trace(inputs_BTE, None, pad_BT)
    parts_BTKC = rollout.contexts_BTC.unflatten(-1, (3, 2))
    changed_BTK = (parts_BTKC[:, 1:] != parts_BTKC[:, :-1]).any(-1)
    for row, real in enumerate(([*range(10)], [0, 3, 4, 6, 7, 8, 9])):
        for number, t in enumerate(real[1:], start=1):
            assert changed_BTK[row, t - 1].tolist() == [number % each == 0 for each in (1, 3, 4)]
    assert rollout.state[1].tolist() == [10, 7]


def test_learned_rates_start_at_their_periods_and_learn() -> None:
    cell = CELLS["learned"](**gated)
    (rate_C, _) = cell.rates(())
    expected = torch.tensor([1 - np.exp(-1.0), 1 - np.exp(-1 / 3)], dtype=torch.float)
    torch.testing.assert_close(rate_C.detach(), expected.repeat_interleave(3))
    outputs_and_contexts(cell, torch.randn(2, 5, E))[1].square().sum().backward()
    assert cell.rates.log_period_K.grad.all()


def test_widths_of_contexts_differ_by_at_most_one() -> None:
    cell = HierarchyCell(E, **{**gated, "context_dim": 11})
    assert [len(part.weight) for part in cell.normalization.parts] == [4, 4, 3]
    assert cell.initial_state(2)[0].shape == (2, 11)


def test_a_shortcut_alone_carries_a_context_over_its_steps() -> None:
    cell = make("skip_add", **plain)
    with torch.no_grad():
        cell.shortcut.gate.weight.zero_()
        cell.shortcut.gate.bias.fill_(50.0)
    contexts = tuple(torch.randn(B, C).double() for _ in range(3))
    _, after, _ = cell(torch.randn(B, E).double(), contexts)
    torch.testing.assert_close(after, (contexts[2], contexts[0], contexts[1]))


def test_a_stack_without_shortcuts_is_a_stack_of_recurrent_layers() -> None:
    cell = make("stacked_plain", **gated)
    inputs_BTE = torch.randn(B, 6, E).double()
    y_BTH, state = Reference()(cell, Chunk(inputs_BTE, cell.initial_state(B)))
    hidden = inputs_BTE
    for layer, own in zip(cell.cells, state, strict=True):
        hidden, after = Reference()(layer, Chunk(hidden, layer.initial_state(B)))
        torch.testing.assert_close(after, (own,))
    torch.testing.assert_close(y_BTH, hidden)


def test_readout_follows_its_equation() -> None:
    torch.manual_seed(0)
    layer = Readout(C, num_layers=4, recurrent_layers=2).double()
    x_BTD = torch.randn(B, 3, C).double()
    u_BTD = x_BTD
    for norm, linear in zip(layer.fnn.norms, layer.fnn.layers, strict=True):
        u_BTD = u_BTD + linear(F.relu(norm(u_BTD)))
    y_BTD, state = layer(x_BTD)
    torch.testing.assert_close(y_BTD, layer.fnn.final_norm(u_BTD))
    assert len(layer.fnn.layers) == 2
    assert state == ()


def test_bits_of_quantized_contexts_are_those_of_all_parts() -> None:
    settings = {**plain, "normalization": Quantized}
    bits = {
        name: Recurrent(E, factory(name), **settings).state_bits(1)
        for name in CELLS
        if name != "learned"
    }
    assert bits == {
        "multihead": 6.0,
        "clocked": 6.0,
        "skip_add": 18.0,
        "skip_read": 18.0,
        "stacked": 12.0,
        "stacked_plain": 18.0,
    }


def model_of(name: str, **settings: Any) -> LanguageModel:
    torch.manual_seed(0)
    layer = partial(Recurrent, cell=factory(name))
    return LanguageModel(11, E, [layer], recurrence=Reference(), **gated | settings)


@pytest.mark.parametrize("name", CELLS)
def test_recomputing_gives_the_same_losses_and_gradients(name: str) -> None:
    tokens_BT = torch.randint(4, 11, (B, 70))  # more than a block
    results = []
    for recompute in (False, True):
        model = model_of(name, recompute=recompute).double().train()
        loss_BT, _, _ = model.score(tokens_BT, tokens_BT.roll(-1, 1))
        loss_BT.sum().backward()
        results.append([loss_BT.detach(), *(weight.grad for weight in model.parameters())])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("normalization", [nn.Identity, nn.LayerNorm])
@pytest.mark.parametrize("name", [*CELLS, "shallow"])
def test_states_keep_their_precision_in_autocast(name: str, normalization: Any) -> None:
    made = shallow_model if name == "shallow" else partial(model_of, name)
    model = made(normalization=normalization)
    tokens_BT = torch.randint(4, 11, (2, 6))
    expected_BTV, _ = model(tokens_BT)
    with torch.autocast("cpu", torch.bfloat16):
        found_BTV, state = model(tokens_BT)
    torch.testing.assert_close(found_BTV.float(), expected_BTV, atol=0.05, rtol=0.05)
    assert {part.dtype for part in state} <= {torch.float32, torch.int64}


def shallow_model(**settings: Any) -> LanguageModel:
    torch.manual_seed(0)
    cell = partial(ContextCell, num_layers=1)
    layers = [partial(Recurrent, cell=cell), Readout]
    return LanguageModel(
        11, E, layers, recurrence=Reference(), **gated | {"num_layers": 3} | settings
    )


@pytest.mark.parametrize("name", [*CELLS, "shallow"])
def test_an_exported_step_reads_token_by_token(name: str) -> None:
    model = (shallow_model() if name == "shallow" else model_of(name)).eval()
    tokens_BT = torch.randint(4, 11, (2, 8))
    tokens_BT[1, [3, 6]] = PAD
    _, state = model(tokens_BT[:, :2])
    batch = Dim("batch", min=1, max=64)
    shapes = ({0: batch}, tuple({0: batch} for _ in state))
    example = tuple(part.detach().clone() for part in state)
    step = export(model, (tokens_BT[:, 2:3], example), dynamic_shapes=shapes).module()
    own_state = state
    for t in range(2, 8):
        logits_B1V, state = model(tokens_BT[:, t : t + 1], state)
        found_B1V, own_state = step(tokens_BT[:, t : t + 1], own_state)
        torch.testing.assert_close(found_B1V, logits_B1V)
    torch.testing.assert_close(own_state, state)


CHOICES = {
    "multihead": ("gated layernorm C8 H8 L3 E4 heads4", 32),
    "hierarchy": ("gated layernorm C8 H8 L3 E4 clocked 1-4-16", 40),
    "hierarchy model.rates=learned": ("gated layernorm C8 H8 L3 E4 learned 1-4-16", 32),
    "skip": ("gated layernorm C8 H8 L3 E4 add4", 128),
    "skip model.skip=read model.skip_steps=2": ("gated layernorm C8 H8 L3 E4 read2", 64),
    "stacked": ("gated layernorm C8 H8 L3 E4 cells2", 64),
    "stacked model.shortcuts=false": ("gated layernorm C8 H8 L3 E4 cells2 plain", 64),
    "shallow": ("gated layernorm C8 H8 L1 E4 then readout L2", 32),
    "shallow gating=none model.recurrent_layers=2": (
        "additive layernorm C8 H8 L2 E4 then readout L1",
        32,
    ),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_models_as_configured(compose_config: Compose, choice: str) -> None:
    description, state_bytes = CHOICES[choice]
    name, *settings = choice.split()
    sizes = ("embedding_dim=4", "context_dim=8", "hidden_dim=8", "num_layers=3")
    overrides = (f"model={name}", *settings, *(f"model.{size}" for size in sizes))
    config = compose_config(*overrides, "model.vocabulary_size=11")
    model = instantiate(config.model)
    assert model.description == description
    assert model.state_bytes(1) == state_bytes
    with torch.no_grad():  # with gradients, the step would be compiled
        logits_BTV, _ = model(torch.randint(4, 11, (2, 5)))
    assert logits_BTV.isfinite().all()


@pytest.mark.parametrize("name", ["multihead", "hierarchy", "skip", "stacked", "shallow"])
def test_a_budget_chooses_the_widths(compose_config: Compose, name: str) -> None:
    config = compose_config(
        f"model={name}",
        "recipe=task",
        "model.num_layers=3",
        "budget.parameters=50000",
        "budget.widths={embedding_dim:1,context_dim:2,hidden_dim:2}",
        "budget.step=4",
    )
    build = partial(instantiate, config.model, (), vocabulary_size=10)
    sizes = instantiate(config.budget).sizes(build)
    assert num_parameters(build(**sizes)) == pytest.approx(50_000, rel=0.1)


def test_a_shallow_recurrence_has_the_parameters_of_a_deep_one_and_one_norm_more() -> None:
    settings = {**gated, "num_layers": 5, "fnn": "residual"}
    deep = LanguageModel(11, E, [partial(Recurrent, cell=ContextCell)], **settings)
    cell = partial(ContextCell, num_layers=2)
    layers = [partial(Recurrent, cell=cell), partial(Readout, recurrent_layers=2)]
    shallow = LanguageModel(11, E, layers, **settings)
    assert num_parameters(shallow) == num_parameters(deep) + 2 * H


@pytest.mark.parametrize(
    ("make_faulty", "message"),
    [
        (
            partial(CELLS["multihead"], **{**plain, "context_dim": 5}),
            "model.num_heads=2: must divide model.context_dim=5",
        ),
        (partial(MultiHeadCell, E, num_heads=0, **plain), "model.num_heads=0: must be at least 1"),
        (
            partial(CELLS["clocked"], **{**plain, "context_dim": 2}),
            "model.context_dim=2: must be at least 3",
        ),
        (
            partial(HierarchyCell, E, periods=[1, 0], rates="fixed", **plain),
            "model.rates=fixed: no such option; options: clocked, learned\n"
            "model.periods=[1,0]: must be a list of whole numbers, at least 1 each",
        ),
        (
            partial(HierarchyCell, E, periods=[], **plain),
            "model.periods=[]: must be a list of whole numbers, at least 1 each",
        ),
        (
            partial(HierarchyCell, E, periods=8, **plain),
            "model.periods=8: must be a list of whole numbers, at least 1 each",
        ),
        (
            partial(CELLS["learned"], **plain, normalization=Quantized),
            "model.rates=learned: leaves no context quantized; use clocked",
        ),
        (
            partial(SkipCell, E, skip_steps=1, skip="both", **plain),
            "model.skip_steps=1: must be at least 2\n"
            "model.skip=both: no such option; options: add, read",
        ),
        (
            partial(SkipCell, E, skip_steps=1025, **plain),
            "model.skip_steps=1025: must be at most 1024",
        ),
        (partial(CELLS["stacked"], num_cells=0, **plain), "model.num_cells=0: must be at least 1"),
        (
            partial(StackedCell, E, cell=HierarchyCell, **plain),
            "HierarchyCell: cannot be stacked; only cells with the step of ContextCell",
        ),
        (
            partial(Readout, H, num_layers=2, recurrent_layers=2),
            "model.num_layers=2: leaves no layer for the read-out; must be above "
            "model.recurrent_layers=2",
        ),
    ],
)
def test_faults_are_told(make_faulty: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        make_faulty()
    assert str(error.value) == message
