"""The contract of every language model; a new model is one row in MODELS.

Shapes: B batch, T time (tokens), C context, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from newllm.data.tokenizer import PAD
from newllm.models.context import ContextModel
from newllm.models.gating import LSTMGating
from newllm.models.initialization import variance_preserving
from newllm.models.language_model import LanguageModel
from newllm.models.mingru import MinGRUModel
from newllm.models.torch_rnn import ElmanModel, GRUModel, LSTMModel
from newllm.models.transformer import Transformer

V = 11
# Logits large enough for a fault to be seen.
loud = partial(variance_preserving, output_gain=1.0)
context = partial(
    ContextModel,
    V,
    embedding_dim=6,
    context_dim=8,
    hidden_dim=10,
    num_layers=3,
    initialization=loud,
)
gated = partial(context, gating=LSTMGating, normalization=nn.LayerNorm)
transformer = partial(
    Transformer,
    V,
    embedding_dim=8,
    num_heads=2,
    num_layers=2,
    feedforward_dim=12,
    initialization=loud,
)
lstm = partial(LSTMModel, V, embedding_dim=6, hidden_dim=8, num_layers=2, initialization=loud)
elman = partial(ElmanModel, V, embedding_dim=6, hidden_dim=8, num_layers=2, initialization=loud)
mingru = partial(
    MinGRUModel, V, embedding_dim=6, hidden_dim=8, num_layers=2, feedforward_dim=10,
    initialization=loud,
)  # fmt: skip
gru = partial(GRUModel, V, embedding_dim=6, hidden_dim=8, num_layers=2, initialization=loud)

MODELS: dict[str, Callable[[], LanguageModel]] = {
    "additive": context,
    "additive_layernorm_clip": partial(context, normalization=nn.LayerNorm, context_clip=1.0),
    "gated": gated,
    "gated_positions": partial(gated, positions="learned"),
    "gated_residual": partial(gated, fnn="residual"),
    "gated_edges": partial(gated, dropout=0.0, embedding_dropout=0.3, output_dropout=0.3),
    "transformer": transformer,
    "transformer_rotary": partial(transformer, positions="rotary"),
    "transformer_positionless": partial(transformer, positions="none"),
    "transformer_prenorm": partial(transformer, norm_first=True),
    "lstm": lstm,
    "gru": gru,
    "elman": elman,
    "mingru": mingru,
}
FIXED_MEMORY = [name for name in MODELS if "transformer" not in name]
CONTEXT_MODELS = [name for name in FIXED_MEMORY if name.startswith(("additive", "gated"))]

# Row by row: plain; PAD in the middle; trailing; leading; nothing but PAD.
PADDED = torch.tensor(
    [
        [2, 4, 5, 6, 7, 8, 9, 3],
        [2, 4, PAD, PAD, 7, 8, PAD, 3],
        [2, 4, 5, 3, PAD, PAD, PAD, PAD],
        [PAD, PAD, 2, 4, 5, 6, 7, 3],
        [PAD] * 8,
    ]
)
RESETS = torch.zeros(5, 8, dtype=torch.bool)
RESETS[0, [0, 3, 4]] = True  # at the first token, and twice in a row
RESETS[1, [2, 5]] = True  # on a PAD, and on a token
RESETS[2, 6] = True  # on a PAD at the end
RESETS[4, 1] = True


def build(name: str) -> LanguageModel:
    torch.manual_seed(0)
    return MODELS[name]().double().eval()


def random_tokens(num_rows: int, num_tokens: int) -> Tensor:
    return torch.randint(1, V, (num_rows, num_tokens), generator=torch.Generator().manual_seed(1))


def in_chunks(
    model: LanguageModel, tokens: Tensor, sizes: list[int], reset: Tensor | None = None
) -> Tensor:
    state, start, logits = None, 0, []
    for size in sizes:
        chunk = slice(start, start + size)
        part, state = model(tokens[:, chunk], state, None if reset is None else reset[:, chunk])
        logits.append(part)
        start += size
    assert start == tokens.shape[1]
    return torch.cat(logits, dim=1)


def assert_same_where_real(actual: Tensor, expected: Tensor, tokens: Tensor) -> None:
    torch.testing.assert_close(actual[tokens != PAD], expected[tokens != PAD], atol=1e-10, rtol=0)
    assert actual.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_no_future_token_changes_an_earlier_logit(name: str) -> None:
    model = build(name)
    tokens = random_tokens(3, 7)
    logits, _ = model(tokens)
    for t in range(7):
        changed = tokens.clone()
        changed[:, t:] = changed[:, t:] % (V - 1) + 1
        perturbed, _ = model(changed)
        torch.testing.assert_close(perturbed[:, :t], logits[:, :t], atol=1e-12, rtol=0)
        assert not torch.isclose(perturbed[:, t:], logits[:, t:]).all(dim=2).any()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", [[1] * 8, [3, 4, 1], [7, 1], [2, 6]])
def test_chunks_equal_the_whole(name: str, sizes: list[int]) -> None:
    model = build(name)
    tokens = random_tokens(3, 8)
    torch.testing.assert_close(
        in_chunks(model, tokens, sizes), model(tokens)[0], atol=1e-10, rtol=0
    )
    assert_same_where_real(in_chunks(model, PADDED, sizes), model(PADDED)[0], PADDED)
    assert_same_where_real(
        in_chunks(model, PADDED, sizes, RESETS), model(PADDED, None, RESETS)[0], PADDED
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("rows", [[0, 2], [0, 1, 2, 3, 4]])
def test_pad_and_reset_equal_clean_segments_read_alone(
    name: str, with_resets: bool, rows: list[int]
) -> None:
    model = build(name)
    tokens, resets = PADDED[rows], RESETS[rows]
    logits, state = model(tokens, None, resets if with_resets else None)
    probe = torch.full((len(rows), 1), 6)
    continuation, _ = model(probe, state)
    for row in range(len(rows)):
        segment_T = resets[row].cumsum(0) * with_resets
        for segment in range(int(segment_T[-1]) + 1):
            chosen = (segment_T == segment) & (tokens[row] != PAD)
            is_last = segment == int(segment_T[-1])
            alone = torch.cat((tokens[row][chosen], probe[0]))[None]
            expected = model(alone)[0][0]
            torch.testing.assert_close(logits[row, chosen], expected[:-1], atol=1e-10, rtol=0)
            if is_last:
                torch.testing.assert_close(continuation[row, 0], expected[-1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", FIXED_MEMORY)
def test_pad_leaves_the_state_untouched_bit_for_bit(name: str) -> None:
    model = build(name)
    _, state = model(random_tokens(3, 4))
    _, after = model(torch.full((3, 2), PAD), state)
    for old, new in zip(tensors_of(state), tensors_of(after), strict=True):
        assert torch.equal(old, new)


def tensors_of(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else list(state)


@pytest.mark.parametrize("name", MODELS)
def test_state_bytes_are_those_of_the_state(name: str) -> None:
    model = build(name)
    for num_tokens in (1, 9):
        _, state = model(random_tokens(1, num_tokens))
        assert all(tensor.shape[0] == 1 for tensor in tensors_of(state))
        assert sum(tensor.nbytes for tensor in tensors_of(state)) == model.state_bytes(num_tokens)


@pytest.mark.parametrize("name", FIXED_MEMORY)
def test_fixed_memory_is_fixed(name: str) -> None:
    model = build(name)
    assert model.state_bytes(1) == model.state_bytes(10_000)
    assert model.flops_per_token(1) == model.flops_per_token(10_000)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("lstm", "gru", "elman")])
def test_flops_equal_those_that_torch_counts(name: str) -> None:
    model = build(name)
    num_tokens = 6
    _, state = model(random_tokens(1, num_tokens - 1))
    # torch counts attention on this path only
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(random_tokens(1, 1), state)
    assert counter.get_total_flops() == model.flops_per_token(num_tokens)


def test_flops_of_recurrent_baselines() -> None:
    # torch does not count inside its LSTM: E=6, H=8, two layers of 4, 3 or 1 pairs of matrices.
    for name, num_gates in (("lstm", 4), ("gru", 3), ("elman", 1)):
        expected = 2 * (num_gates * 8 * ((6 + 8) + (8 + 8)) + 8 * V)
        assert build(name).flops_per_token(1) == expected


@pytest.mark.parametrize("name", MODELS)
def test_dropout_only_in_training_and_by_the_seed(name: str) -> None:
    model = build(name)
    tokens = random_tokens(3, 5)
    assert torch.equal(model(tokens)[0], model(tokens)[0])

    def train_logits(seed: int) -> Tensor:
        torch.manual_seed(seed)
        logits: Tensor = model.train()(tokens)[0]
        return logits

    assert torch.equal(train_logits(1), train_logits(1))
    assert not torch.allclose(train_logits(1), train_logits(2))


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name: str) -> None:
    model = build(name)
    logits, _ = model(random_tokens(3, 6))
    logits.logsumexp(-1).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", CONTEXT_MODELS)
def test_trace_tells_what_forward_does(name: str) -> None:
    model = build(name)
    assert isinstance(model, ContextModel)
    _, state = model(random_tokens(5, 3))
    logits, end = model(PADDED, state)
    trace = model.trace(PADDED, state)
    assert torch.equal(trace.logits_BTV, logits)
    for traced, returned in zip(tensors_of(trace.state), tensors_of(end), strict=True):
        assert torch.equal(traced, returned)
    assert torch.equal(trace.contexts_BTC[:, -1], tensors_of(end)[0])
    is_gated = isinstance(model.cell.gating, LSTMGating)
    assert set(trace.gates) == ({"forget", "input"} if is_gated else set())
    for gate_BTC in trace.gates.values():
        assert gate_BTC.shape == trace.contexts_BTC.shape


def test_zero_intervention_leaves_only_the_token_itself() -> None:
    model = build("gated")
    assert isinstance(model, ContextModel)
    tokens = random_tokens(3, 6)
    trace = model.trace(tokens, intervene=lambda t, context_BC: torch.zeros_like(context_BC))
    assert not trace.contexts_BTC.any()
    for t in range(6):
        alone, _ = model(tokens[:, t : t + 1])
        torch.testing.assert_close(trace.logits_BTV[:, t : t + 1], alone)


@pytest.mark.parametrize(
    ("model", "description"),
    [
        (context(embedding_dim=256), "additive C8 H10 L3"),
        (gated(embedding_dim=256), "gated layernorm C8 H10 L3"),
        (
            gated(positions="learned", fnn="residual", context_clip=10.0),
            "gated layernorm C8 H10 L3 E6 clip10 positions residual",
        ),
        (Transformer(V), "transformer E256 heads4 L6"),
        (transformer(leaky=True), "transformer_leaky E8 heads2 L2 F12"),
        (transformer(positions="rotary", norm_first=True, feedforward_dim=32),
         "transformer E8 heads2 L2 rotary prenorm"),
        (transformer(positions="none"), "transformer E8 heads2 L2 F12 positionless"),
        (LSTMModel(V), "lstm E128 H256 L3"),
        (GRUModel(V), "gru E128 H256 L3"),
        (ElmanModel(V), "elman E128 H256 L3"),
        (MinGRUModel(V), "mingru E128 H256 L3"),
        (mingru(), "mingru E6 H8 L2 F10"),
    ],
)  # fmt: skip
def test_description(model: LanguageModel, description: str) -> None:
    assert model.description == description


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(context, hidden_dim=0), "model.hidden_dim=0 must be at least 1"),
        (partial(context, num_layers=-1), "model.num_layers=-1 must be at least 1"),
        (partial(context, dropout=1.0), "model.dropout=1.0 must be at least 0 and below 1"),
        (
            partial(context, context_clip=0.0),
            "model.context_clip=0.0 must be above 0, or null for none",
        ),
        (
            partial(context, positions="rotary"),
            "model.positions=rotary does not exist; choose one of: none, learned",
        ),
        (
            partial(context, fnn="deep"),
            "model.fnn=deep does not exist; choose one of: plain, residual",
        ),
        (
            partial(context, context_dim=0, dropout=float("nan")),
            "model.context_dim=0 must be at least 1\n"
            "model.dropout=nan must be at least 0 and below 1",
        ),
        (partial(transformer, num_heads=3), "model.num_heads=3 must divide model.embedding_dim=8"),
        (partial(transformer, num_heads=0), "model.num_heads=0 must be at least 1"),
        (
            partial(transformer, num_heads=8, positions="rotary"),
            "model.positions=rotary needs an even head size, but model.embedding_dim=8 / "
            "model.num_heads=8 is 1",
        ),
        (
            partial(transformer, positions="sine"),
            "model.positions=sine does not exist; choose one of: learned, rotary, none",
        ),
        (
            partial(transformer, embedding_dropout=1.0, output_dropout=-1.0),
            "model.embedding_dropout=1.0 must be at least 0 and below 1\n"
            "model.output_dropout=-1.0 must be at least 0 and below 1",
        ),
        (partial(LSTMModel, V, dropout=-0.1), "model.dropout=-0.1 must be at least 0 and below 1"),
        (partial(GRUModel, V, embedding_dim=0), "model.embedding_dim=0 must be at least 1"),
    ],
)  # fmt: skip
def test_impossible_settings_are_named(make: Callable[[], LanguageModel], message: str) -> None:
    with pytest.raises(ValueError) as fault:  # noqa: PT011 -- the whole message is compared
        make()
    assert str(fault.value) == message
