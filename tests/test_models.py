"""The language model around its layers: tokens, padding, state, scores, traces and faults.

The contract of the layers themselves is asked in `test_contract`.

Shapes: B batch, T time (tokens), C context, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from small_models import (
    context_attention_model,
    context_model,
    delta_model,
    hybrid,
    linear_delta_model,
    mingru_model,
    rnn_model,
    transformer,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from newllm.data.batch import IGNORE
from newllm.data.tokenizer import PAD
from newllm.models.gating import LSTMGating
from newllm.models.initialization import variance_preserving
from newllm.models.language_model import LanguageModel
from newllm.models.local_attention import LocalAttention, SparseAttention
from newllm.models.recurrence.fused import Fused
from newllm.models.recurrence.reference import Reference
from newllm.models.torch_rnn import GRU, LSTM, Elman

V = 11
# Logits large enough for a fault to be seen; something to draw in training.
loud = {"initialization": partial(variance_preserving, output_gain=1.0)}
drops = {"dropout": 0.1, **loud}
context = partial(context_model, V, **drops)
gated = partial(context, gating=LSTMGating, normalization=nn.LayerNorm)

MODELS: dict[str, Callable[[], LanguageModel]] = {
    "additive": context,
    "additive_layernorm_clip": partial(context, normalization=nn.LayerNorm, context_clip=1.0),
    "gated": partial(gated, recurrence=Fused()),
    "gated_positions": partial(gated, positions="learned"),
    "gated_residual": partial(gated, fnn="residual"),
    "gated_edges": partial(gated, dropout=0.0, embedding_dropout=0.3, output_dropout=0.3),
    "transformer": partial(transformer, V, **drops),
    "transformer_rotary": partial(transformer, V, positions="rotary", **drops),
    "transformer_prenorm": partial(transformer, V, positions="none", norm_first=True, **drops),
    "hybrid": partial(hybrid, V, positions="learned", **drops),
    "hybrid_rotary": partial(hybrid, V, positions="rotary", **drops),
    "hybrid_local": partial(
        hybrid, V, partial(LocalAttention, window=3), positions="rotary", **drops
    ),
    "hybrid_sparse": partial(hybrid, V, partial(SparseAttention, window=2, stride=2), **drops),
    "transformer_of_contexts": partial(context_attention_model, V, **drops),
    "delta": partial(delta_model, V, recurrence=Fused(compile=False), **drops),
    "linear_delta": partial(linear_delta_model, V, **drops),
    "lstm": partial(rnn_model, V, LSTM, **drops),
    "gru": partial(rnn_model, V, GRU, **drops),
    "elman": partial(rnn_model, V, Elman, **drops),
    "mingru": partial(mingru_model, V, **drops),
}
FIXED_MEMORY = [name for name in MODELS if not name.startswith(("transformer", "hybrid"))]
RECURRENT = [name for name in MODELS if name.startswith(("additive", "gated", "hybrid"))]

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
@pytest.mark.parametrize("sizes", [[1] * 8, [3, 4, 1]])
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
    for old, new in zip(state, after, strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("name", MODELS)
def test_state_bytes_are_those_of_the_state(name: str) -> None:
    model = build(name)
    for num_tokens in (1, 9):
        _, state = model(random_tokens(1, num_tokens))
        assert all(tensor.shape[0] == 1 for tensor in state)
        assert sum(tensor.nbytes for tensor in state) == model.state_bytes(num_tokens)


@pytest.mark.parametrize("name", FIXED_MEMORY)
def test_fixed_memory_is_fixed(name: str) -> None:
    model = build(name)
    assert model.state_bytes(1) == model.state_bytes(10_000)
    assert model.flops_per_token(1) == model.flops_per_token(10_000)


# torch does not count inside its recurrent networks. The others also take products that are not
# counted: with tokens that a mask hides, with the initial context, and within a group of writes.
UNCOUNTED = {"lstm", "gru", "elman", "hybrid_sparse", "transformer_of_contexts", "linear_delta"}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in UNCOUNTED])
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


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_cross_entropies_of_the_logits(name: str) -> None:
    model = build(name)
    _, state = model(random_tokens(5, 3))
    targets = PADDED.roll(-1, dims=1)
    targets = targets.masked_fill(targets == PAD, IGNORE)
    loss_BT, correct_BT, after = model.score(PADDED, targets, state, RESETS)
    logits_BTV, expected = model(PADDED, state, RESETS)
    log_BTV = logits_BTV.log_softmax(-1)
    wanted_BT = -log_BTV.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    wanted_BT = wanted_BT.where(targets != IGNORE, 0)
    torch.testing.assert_close(loss_BT, wanted_BT, atol=1e-10, rtol=0)
    assert torch.equal(correct_BT, log_BTV.argmax(-1) == targets)
    torch.testing.assert_close(after, expected)


@pytest.mark.parametrize("name", RECURRENT)
def test_trace_tells_what_forward_does(name: str) -> None:
    model = build(name)
    for layer in model.recurrent_layers:
        layer.recurrence = Reference()  # what it gives at padding stands in caches of attention
    _, state = model(random_tokens(5, 3))
    logits, end = model(PADDED, state)
    trace = model.trace(PADDED, state)
    assert_same_where_real(trace.logits_BTV, logits, PADDED)
    torch.testing.assert_close(trace.state, end)
    assert any(torch.equal(trace.contexts_BTC[:, -1], tensor) for tensor in trace.state)
    is_gated = name.startswith("gated")
    assert set(trace.gates) == ({"forget", "input"} if is_gated else set())
    for gate_BTC in trace.gates.values():
        assert gate_BTC.shape == trace.contexts_BTC.shape


def test_zero_intervention_leaves_only_the_token_itself() -> None:
    model = build("gated")
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
        (gated(embedding_dim=256, positions="learned"), "gated layernorm C8 H10 L3 positions"),
        (gated(fnn="residual", context_clip=10.0), "gated layernorm C8 H10 L3 E6 clip10 residual"),
        (transformer(V, feedforward_dim=32), "transformer E8 heads2 L2"),
        (transformer(V, leaky=True), "transformer_leaky E8 heads2 L2 F12"),
        (transformer(V, positions="rotary", norm_first=True, feedforward_dim=32),
         "transformer E8 heads2 L2 rotary prenorm"),
        (transformer(V, positions="none"), "transformer E8 heads2 L2 F12 positionless"),
        (rnn_model(V, LSTM), "lstm E6 H8 L2"),
        (rnn_model(V, GRU), "gru E6 H8 L2"),
        (rnn_model(V, Elman), "elman E6 H8 L2"),
        (mingru_model(V, feedforward_dim=8), "mingru E6 H8 L2"),
        (mingru_model(V), "mingru E6 H8 L2 F10"),
        (hybrid(V, positions="learned"),
         "additive C8 H12 L3 E6 then transformer E12 heads2 L3 F12"),
    ],
)  # fmt: skip
def test_description(model: LanguageModel, description: str) -> None:
    assert model.description == description


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(context, hidden_dim=0), "model.hidden_dim=0: must be at least 1"),
        (partial(context, num_layers=-1), "model.num_layers=-1: must be at least 1"),
        (partial(context, dropout=1.0), "model.dropout=1.0: must be at least 0 and below 1"),
        (
            partial(context, context_clip=0.0),
            "model.context_clip=0.0: must be above 0, or null for none",
        ),
        (
            partial(context, positions="rotary"),
            "model.positions=rotary: no such option; options: none, learned",
        ),
        (
            partial(context, fnn="deep"),
            "model.fnn=deep: no such option; options: plain, residual",
        ),
        (
            partial(context, context_dim=0, dropout=float("nan")),
            "model.context_dim=0: must be at least 1\n"
            "model.dropout=nan: must be at least 0 and below 1",
        ),
        (
            partial(transformer, V, num_heads=3),
            "model.num_heads=3: must divide the width of the layer, 8 (model.embedding_dim, if it "
            "is the first)",
        ),
        (partial(transformer, V, num_heads=0), "model.num_heads=0: must be at least 1"),
        (
            partial(transformer, V, num_heads=8, positions="rotary"),
            "model.positions=rotary: model.num_heads=8 must divide half of the width of the layer, "
            "8 (model.embedding_dim, if it is the first)",
        ),
        (
            partial(transformer, V, positions="sine"),
            "model.positions=sine: no such option; options: none, learned, rotary",
        ),
        (
            partial(transformer, V, embedding_dropout=1.0, output_dropout=-1.0),
            "model.embedding_dropout=1.0: must be at least 0 and below 1\n"
            "model.output_dropout=-1.0: must be at least 0 and below 1",
        ),
        (partial(rnn_model, V, dropout=-0.1), "model.dropout=-0.1: must be at least 0 and below 1"),
        (
            partial(rnn_model, V, embedding_dim=0, num_layers=0),
            "model.embedding_dim=0: must be at least 1\nmodel.num_layers=0: must be at least 1",
        ),
        (
            partial(context, contxt_dim=3),
            "model.contxt_dim: no layer of this model accepts it; did you mean context_dim?",
        ),
        (
            partial(rnn_model, V, xyz=3),
            "model.xyz: no layer of this model accepts it; there are dropout, hidden_dim, "
            "num_layers",
        ),
        (
            partial(LanguageModel, V, 6, [LSTM]),
            "model.layers[0]: TorchRNN.__init__() missing 2 required positional arguments: "
            "'hidden_dim' and 'num_layers'",
        ),
        (partial(LanguageModel, V, 6, []), "model.layers=[]: a model needs at least one layer"),
        (partial(LanguageModel, V, 6, [nn.Identity]), "model.layers[0]: Identity is not a Layer"),
    ],
)  # fmt: skip
def test_impossible_settings_are_named(make: Callable[[], LanguageModel], message: str) -> None:
    with pytest.raises(ValueError) as fault:  # noqa: PT011 -- the whole message is compared
        make()
    assert str(fault.value) == message
