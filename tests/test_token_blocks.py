"""Tokens drawn in native code: those that the model draws by itself, and nothing else to see."""

from collections.abc import Callable
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import context_layer, context_model, rnn_model, transformer
from torch import nn

from newllm.data.tokenizer import EOS, PAD, Tokenizer
from newllm.models import sampling as sampling_module
from newllm.models.cell import ContextCell
from newllm.models.distribution import Sampling, Uniforms, draw
from newllm.models.gating import Additive, LSTMGating
from newllm.models.generation import launch
from newllm.models.generation.block import draws_in_native_code
from newllm.models.language_model import LanguageModel
from newllm.models.quantization import Quantized
from newllm.models.recurrence.parallel import Parallel
from newllm.models.recurrence.reference import Reference
from newllm.models.recurrent import Recurrent
from newllm.models.sampling import Continuation

WORDS = [f"word{number}" for number in range(130)]  # over two blocks of outputs, not whole ones
SAMPLINGS = {
    "all": Sampling(),
    "temperature": Sampling(temperature=0.7),
    "greedy": Sampling(temperature=0),
    "cold": Sampling(temperature=1e-30),
    "top_k": Sampling(top_k=20),
    "top_p": Sampling(top_p=0.8),
    "min_p": Sampling(min_p=0.2),
    "penalty": Sampling(repetition_penalty=1.5),
    "everything": Sampling(0.8, top_k=90, top_p=0.9, min_p=0.05, repetition_penalty=1.2),
}
ROUNDING = 1e-4  # of a probability


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(WORDS)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Native code from the second token on."""
    monkeypatch.setattr(sampling_module, "WORTH_LOADING", 0)
    monkeypatch.setattr(sampling_module, "WORTH_COMPILING", 0)


def model_of(tokenizer: Tokenizer, seed: int = 0, **settings: Any) -> LanguageModel:
    """A model whose logits differ; two classes have no token."""
    torch.manual_seed(seed)
    settings = {"gating": LSTMGating, "normalization": nn.LayerNorm} | settings
    model = context_model(tokenizer.size + 2, **settings).eval()
    with torch.no_grad():
        model.output.weight.mul_(5)
        model.output.bias.normal_()
        for cell in (layer.cell for layer in model.recurrent_layers):
            if isinstance(cell.normalization, nn.LayerNorm):
                cell.normalization.weight.uniform_(0.5, 1)
                cell.normalization.bias.normal_()
    return model


def by_itself(model: LanguageModel, *arguments: Any, **settings: Any) -> Continuation:
    """A continuation without native code."""
    continuation = Continuation(model, *arguments, **settings)
    continuation._has_blocks = lambda: False  # type: ignore[method-assign]
    return continuation


def taken(continuation: Continuation, num_tokens: int) -> list[list[int]]:
    return [token_B.tolist() for token_B in islice(continuation, num_tokens)]


def is_drawn_by_rounding(
    continuation: Continuation, sampling: Sampling, uniform: float, token: int
) -> bool:
    """Whether a token is almost the one that a model draws next by itself.

    Then a number just above or below it, or limits that are almost the same, draw it too.
    """
    pending = continuation._drawn_B
    if pending is not None:
        continuation._advance(continuation._following(pending)[:, None])
    logits_BV, seen_BV = continuation._logits_BV, continuation._seen_BV
    assert logits_BV is not None
    allowed_BV = logits_BV.masked_fill(continuation._never_V, -torch.inf)
    if sampling.is_greedy:
        return bool(allowed_BV[0, token] >= allowed_BV.max() - ROUNDING)
    near = {
        draw(Sampling(
            sampling.temperature, top_k, min(1, sampling.top_p * scale), sampling.min_p * scale,
            sampling.repetition_penalty,
        ).probabilities(allowed_BV, seen_BV), torch.tensor([number], dtype=torch.float64)).item()
        for scale in (1 - ROUNDING, 1, 1 + ROUNDING)
        for top_k in {sampling.top_k, sampling.top_k and sampling.top_k + 1}
        for number in (max(0, uniform - ROUNDING), uniform, min(1 - 1e-9, uniform + ROUNDING))
    }  # fmt: skip
    return token in near


@pytest.mark.parametrize("name", SAMPLINGS)
def test_the_same_tokens_as_by_the_model_itself(tokenizer: Tokenizer, name: str) -> None:
    sampling, num_same, num_apart, length = SAMPLINGS[name], 0, 0, 600
    for seed in range(4):
        model = model_of(tokenizer, seed)
        given = {"sampling": sampling, "seed": seed, "is_endless": True}
        expected = taken(by_itself(model, tokenizer, **given), length)
        continuation = Continuation(model, tokenizer, **given)
        found = taken(continuation, length)
        assert continuation._blocks is not None
        apart = [t for t in range(length) if found[t] != expected[t]]
        num_same += min([*apart, length])
        if apart:  # from the first one on, the texts are others
            first = apart[0]
            continuation = by_itself(model, tokenizer, **given)
            taken(continuation, first)
            uniform = float(Uniforms(1, seed).ahead(length)[first])
            assert is_drawn_by_rounding(continuation, sampling, uniform, found[first][0])
            num_apart += 1
    assert num_apart <= 1
    assert num_same >= 2 * length


STRUCTURES = {
    f"{fnn} {gating.__name__} {normalization.__name__} L{num_layers} clip{clip}": {
        "fnn": fnn, "gating": gating, "normalization": normalization, "num_layers": num_layers,
        "context_clip": clip,
    }
    for fnn, gating, normalization, num_layers, clip in product(
        ("plain", "residual"), (Additive, LSTMGating), (nn.Identity, nn.LayerNorm), (1, 4),
        (None, 0.6),
    )
}  # fmt: skip


@torch.no_grad()
def assert_state_is_that_of(continuation: Continuation, read_BT: torch.Tensor) -> None:
    """The state is that of a model that read these tokens, `<PAD>` where a row did not."""
    _, expected = continuation._model(read_BT)
    assert continuation.state is not None
    for found_BC, expected_BC in zip(continuation.state, expected, strict=True):
        torch.testing.assert_close(found_BC, expected_BC, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_gives_its_states(tokenizer: Tokenizer, structure: str) -> None:
    model = model_of(tokenizer, **STRUCTURES[structure])
    for num_rows in (1, 6):
        continuation = Continuation(model, tokenizer, num_rows=num_rows, seed=2, is_endless=True)
        continuation.read([7, 8])
        drawn_TB = torch.tensor(taken(continuation, 20))
        read_BT = torch.cat([torch.tensor([[7, 8]] * num_rows), drawn_TB[:-1].t()], dim=1)
        assert_state_is_that_of(continuation, read_BT.masked_fill(read_BT == EOS, 2))


def test_layers_of_any_width_on_each_other(tokenizer: Tokenizer) -> None:
    wide = partial(context_layer, hidden_dim=70, context_dim=129, fnn="residual")
    model = LanguageModel(
        tokenizer.size, 5, [context_layer, wide, context_layer], hidden_dim=9, context_dim=3,
        num_layers=2, normalization=nn.LayerNorm,
    ).eval()  # fmt: skip
    assert draws_in_native_code(model)
    for num_rows in (1, 3, 4, 9):
        continuation = Continuation(model, tokenizer, num_rows=num_rows, is_endless=True)
        continuation.read([5])
        drawn_TB = torch.tensor(taken(continuation, 12))
        assert continuation._blocks is not None
        read_BT = torch.cat([torch.full((num_rows, 1), 5), drawn_TB[:-1].t()], dim=1)
        assert_state_is_that_of(continuation, read_BT.masked_fill(read_BT == EOS, 2))


def test_rows_end_as_by_the_model_itself(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer)
    with torch.no_grad():
        model.output.bias[EOS] += 3
    for num_rows in (1, 7):
        given = {"num_rows": num_rows, "seed": 5}
        continuation = Continuation(model, tokenizer, **given)  # type: ignore[arg-type]
        found = [token_B.tolist() for token_B in continuation]
        expected = [token_B.tolist() for token_B in by_itself(model, tokenizer, **given)]
        assert found == expected
        assert len(found) > 2
        assert {token for tokens in found[-1:] for token in tokens} == ({EOS, PAD} if num_rows > 1
            else {EOS})  # fmt: skip
        with pytest.raises(StopIteration):
            next(continuation)
        read_BT = torch.tensor([[2] * num_rows, *found]).t()[:, :-1]
        assert_state_is_that_of(continuation, read_BT.masked_fill(read_BT == EOS, PAD))
        continuation.read([9])
        assert len(taken(continuation, 1)) == 1


@pytest.mark.parametrize("num_taken", [1, 2, 3, 40, 41, 300, 513])
def test_a_block_drawn_ahead_is_not_seen(tokenizer: Tokenizer, num_taken: int) -> None:
    """Every operation after a number of tokens, at the ends of blocks and within."""
    model = model_of(tokenizer)
    given: dict[str, Any] = {
        "sampling": Sampling(repetition_penalty=1.3), "seed": 3, "is_endless": True,
    }  # fmt: skip
    operations: list[Callable[[Continuation], object]] = [
        lambda it: it.read([8, 9]),
        lambda it: it.read([]),
        lambda it: it.reset(),
        lambda it: it.state,
        lambda it: it.load_state_dict(it.state_dict()),
    ]
    for operate in operations:
        found, expected = (
            Continuation(model, tokenizer, **given),
            by_itself(model, tokenizer, **given),
        )
        assert taken(found, num_taken) == taken(expected, num_taken)
        operate(found)
        operate(expected)
        mine, theirs = found.state_dict(), expected.state_dict()
        for name in ("_num_read", "_drawn_B", "_seen_BV", "_is_done_B", "state"):
            torch.testing.assert_close(mine[name], theirs[name], atol=1e-4, rtol=1e-4)
        assert taken(found, 30) == taken(expected, 30)


def test_a_saved_state_goes_on_with_and_without_machine_code(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model, greedy = model_of(tokenizer), Sampling(temperature=0)
    first = Continuation(model, tokenizer, greedy, is_endless=True)
    taken(first, 50)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    expected = taken(first, 30)
    for make in (Continuation, by_itself):
        other = make(model, tokenizer, greedy, is_endless=True)
        taken(other, 7)
        other.load_state_dict(torch.load(tmp_path / "state.pt"))
        assert taken(other, 30) == expected


def test_tokens_of_equal_weight_are_equally_likely(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()
        model.output.bias[20:40] = 100  # all others have no probability in float32
    for sampling in (Sampling(), Sampling(top_k=3), Sampling(top_p=0.1), Sampling(min_p=1)):
        continuation = Continuation(model, tokenizer, sampling, num_rows=50, is_endless=True)
        drawn = torch.tensor(taken(continuation, 200))[1:]
        assert continuation._blocks is not None
        assert set(drawn.flatten().tolist()) == {*range(20, 40)}
        share = (drawn[:, :, None] == torch.arange(20, 40)).float().mean((0, 1))
        torch.testing.assert_close(share, torch.full((20,), 0.05), atol=0.015, rtol=0)
    greedy = Continuation(model, tokenizer, Sampling(temperature=0), is_endless=True)
    assert taken(greedy, 5) == [[20]] * 5


def test_only_models_that_it_knows_have_machine_code(tokenizer: Tokenizer) -> None:
    size, make = tokenizer.size, partial(model_of, tokenizer)
    assert draws_in_native_code(make())
    for recurrence in (Reference(), Parallel()):
        assert draws_in_native_code(make(recurrence=recurrence))

    class OwnCell(ContextCell):
        pass

    class OwnModel(LanguageModel):
        pass

    hooked, parametrized = make(), make()
    hooked.embedding.register_forward_hook(lambda *_: None)
    nn.utils.parametrizations.weight_norm(parametrized.output)
    own_layer = partial(Recurrent, cell=OwnCell)
    widths = {"context_dim": 4, "hidden_dim": 4, "num_layers": 2}
    others = [
        make().train(),
        make().double(),
        make(positions="learned", max_length=4),
        make(normalization=Quantized),
        make(recurrence=lambda cell, chunk: Reference()(cell, chunk)),
        hooked,
        parametrized,
        LanguageModel(size, 4, [own_layer], **widths).eval(),
        OwnModel(size, 4, [context_layer], **widths).eval(),
        rnn_model(size).eval(),
        transformer(size).eval(),
    ]
    for model in others:
        assert not draws_in_native_code(model)
    with torch.autocast("cpu"):
        assert not draws_in_native_code(make())
    continuation = Continuation(others[3], tokenizer, is_endless=True)
    assert len(taken(continuation, 5)) == 5
    assert continuation._blocks is None


def test_changed_weights_are_noticed(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer)
    continuation = Continuation(model, tokenizer, Sampling(temperature=0), is_endless=True)
    assert taken(continuation, 10) != [[30]] * 10
    with torch.no_grad():
        model.output.bias[30] = 100
    continuation.read([5])
    assert taken(continuation, 10) == [[30]] * 10
    with torch.no_grad():
        model.output.bias[30] = torch.inf
    continuation.read([])
    continuation._logits_BV = None  # those of the weights before
    continuation._drawn_B = torch.tensor([5])
    with pytest.raises(ValueError, match="the model's logits are not finite"):
        next(continuation)


def test_logits_that_stop_being_finite(tokenizer: Tokenizer) -> None:
    """The tokens before them are drawn, and the state is that before them."""
    model = model_of(tokenizer, gating=Additive, normalization=nn.Identity)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.zero_()
        model.output.bias[30:33] = 100
        model.embedding.weight[32] = torch.nan
    texts: list[list[list[int]]] = []
    for make in (by_itself, Continuation):
        continuation = make(model, tokenizer, seed=1, is_endless=True)
        texts.append([])
        with pytest.raises(ValueError, match="the model's logits are not finite"):
            texts[-1].extend(token_B.tolist() for token_B in islice(continuation, 500))
    assert texts[0] == texts[1]
    assert texts[0][-1] == [32]
    assert len(texts[0]) > 2


def test_machine_code_waits_until_it_is_worth_loading(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, is_in_cache = model_of(tokenizer), False
    monkeypatch.setattr(sampling_module, "WORTH_LOADING", 10)
    monkeypatch.setattr(sampling_module, "WORTH_COMPILING", 20)
    monkeypatch.setattr(launch, "is_loaded", lambda: False)
    monkeypatch.setattr(launch, "is_in_cache", lambda: is_in_cache)

    def num_by_itself() -> int:
        continuation = Continuation(model, tokenizer, is_endless=True)
        return next(t for t, _ in enumerate(continuation) if continuation._blocks is not None)

    assert num_by_itself() == 20
    is_in_cache = True
    assert num_by_itself() == 10
    monkeypatch.setattr(launch, "is_loaded", lambda: True)
    assert num_by_itself() == 1


def test_random_numbers_are_one_stream() -> None:
    expected = Uniforms(3, seed=4).use(20)
    uniforms = Uniforms(3, seed=4)
    assert torch.equal(uniforms.ahead(7), expected[:7])
    assert torch.equal(uniforms.use(2), expected[:2])
    assert torch.equal(uniforms.ahead(9), expected[2:11])
    assert torch.equal(uniforms.use(18), expected[2:])
    assert not torch.equal(Uniforms(3, seed=5).use(20), expected)


def test_a_draw_is_where_the_cumulative_probability_exceeds_the_number() -> None:
    probability_BV = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    numbers = [0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53]
    found = [int(draw(probability_BV, torch.tensor([u], dtype=torch.float64))) for u in numbers]
    assert found == [1, 1, 3, 3, 4, 4]


def test_memory_stays_the_same(tokenizer: Tokenizer) -> None:
    def resident_bytes() -> int:
        return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

    continuation = Continuation(model_of(tokenizer), tokenizer, is_endless=True)
    taken(continuation, 2000)
    before = resident_bytes()
    for _ in islice(continuation, 50_000):
        pass
    assert resident_bytes() - before < 1_000_000
