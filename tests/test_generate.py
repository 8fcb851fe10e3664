"""Generating from a model: the distribution, the state, the text, and its faults."""

import math
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from small_models import (
    context_attention_model,
    context_model,
    delta_model,
    hybrid,
    linear_delta_model,
    rnn_model,
    transformer,
)

from newllm.data.text_stream import MOST_TOKENS, TextStream
from newllm.data.tokenizer import BOS, EOS, PAD, UNK, Tokenizer
from newllm.models.distribution import Sampling
from newllm.models.language_model import LanguageModel
from newllm.models.local_attention import LocalAttention, SparseAttention
from newllm.models.sampling import Continuation, NoMorePositions, sample_sentences
from newllm.runs.generation import text_of

SENTENCES = ["the cat sleeps", "the dog barks", "a dog sleeps"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.train(SENTENCES)


@pytest.fixture
def model(tokenizer: Tokenizer) -> LanguageModel:
    torch.manual_seed(0)
    # Wider than the vocabulary, as the original recipe has it.
    return context_model(tokenizer.size + 20).eval()


def test_samples_are_words_after_the_prompt(model: LanguageModel, tokenizer: Tokenizer) -> None:
    words = {word for sentence in SENTENCES for word in sentence.split()}
    sentences = sample_sentences(model, tokenizer, 50, prompt="the dog", max_tokens=12)
    assert len(sentences) == 50
    for sentence in sentences:
        assert sentence.startswith("the dog")
        assert set(sentence.split()) <= words
        assert len(sentence.split()) <= 11
    assert len(set(sentences)) > 10


def test_the_seed_decides_the_samples(model: LanguageModel, tokenizer: Tokenizer) -> None:
    first, again, other = (sample_sentences(model, tokenizer, 5, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_frequencies_are_the_model_s_probabilities(
    model: LanguageModel, tokenizer: Tokenizer
) -> None:
    with torch.no_grad():
        logits_V = model(torch.tensor([tokenizer.encode_prompt("the")]))[0][0, -1] / 0.5
    allowed = torch.arange(4, tokenizer.size)
    words = [tokenizer.decode([i]) for i in allowed.tolist()]
    # One token past the prompt; a sentence that ends there shows no word.
    expected = torch.cat([logits_V[3:4], logits_V[allowed]]).softmax(0)
    sentences = sample_sentences(
        model, tokenizer, 20_000, prompt="the", max_tokens=3, sampling=Sampling(temperature=0.5)
    )
    drawn = [sentence.removeprefix("the").strip() for sentence in sentences]
    counts = torch.tensor([drawn.count(word) for word in ["", *words]]) / len(drawn)
    torch.testing.assert_close(counts, expected, atol=0.015, rtol=0)


def test_faults(model: LanguageModel, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="max_tokens=-1: must be at least 1"):
        sample_sentences(model, tokenizer, 1, max_tokens=-1)
    with pytest.raises(ValueError, match=r"contains unknown words: \['zebra'\]"):
        sample_sentences(model, tokenizer, 1, prompt="the zebra")
    with pytest.raises(ValueError, match="num=0"):
        sample_sentences(model, tokenizer, 0)
    with pytest.raises(ValueError, match="the prompt has 3 tokens"):
        sample_sentences(model, tokenizer, 1, prompt="the dog", max_tokens=2)


LOGITS_BV = torch.tensor([[4.0, 3.0, 2.0, -1.0, 0.0], [0.0, 0.0, 5.0, 1.0, 1.0]])
NOTHING_SEEN_BV = torch.zeros_like(LOGITS_BV, dtype=torch.bool)


def kept_of(sampling: Sampling) -> list[list[int]]:
    """The tokens of each row that can be drawn."""
    found_BV = sampling.probabilities(LOGITS_BV, NOTHING_SEEN_BV)
    torch.testing.assert_close(found_BV.sum(-1), torch.ones(2))
    return [row.nonzero()[:, 0].tolist() for row in found_BV]


def test_limits_of_the_distribution() -> None:
    everything = [0, 1, 2, 3, 4]
    # Probabilities of the first row: 0.64, 0.24, 0.09, 0.004, 0.01; of the second: 0.95 for 2.
    assert kept_of(Sampling()) == [everything, everything]
    assert kept_of(Sampling(temperature=0)) == kept_of(Sampling(top_k=1)) == [[0], [2]]
    assert kept_of(Sampling(top_k=2)) == [[0, 1], [2, 3, 4]]  # a tie
    assert kept_of(Sampling(top_k=99)) == [everything, everything]
    assert kept_of(Sampling(top_p=0.6)) == [[0], [2]]
    assert kept_of(Sampling(top_p=0.7)) == [[0, 1], [2]]
    assert kept_of(Sampling(min_p=0.3)) == [[0, 1], [2]]
    assert kept_of(Sampling(top_k=3, top_p=0.99, min_p=0.2)) == [[0, 1], [2]]


def test_what_is_left_keeps_its_ratios() -> None:
    full_BV = Sampling(temperature=2).probabilities(LOGITS_BV, NOTHING_SEEN_BV)
    torch.testing.assert_close(full_BV, (LOGITS_BV / 2).softmax(-1))
    for limited in (Sampling(2.0, top_k=2), Sampling(2.0, top_p=0.7), Sampling(2.0, min_p=0.4)):
        found_BV = limited.probabilities(LOGITS_BV, NOTHING_SEEN_BV)
        expected_BV = full_BV * (found_BV > 0)
        torch.testing.assert_close(found_BV, expected_BV / expected_BV.sum(-1, keepdim=True))


def test_tokens_that_occurred_are_less_likely() -> None:
    seen_BV = torch.tensor([[True, False, False, True, False]] * 2)
    found_BV = Sampling(repetition_penalty=2).probabilities(LOGITS_BV, seen_BV)
    expected = torch.tensor([[2.0, 3.0, 2.0, -2.0, 0.0], [0.0, 0.0, 5.0, 0.5, 1.0]])
    torch.testing.assert_close(found_BV, expected.softmax(-1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0.0},
        {"top_p": 1.5}, {"min_p": -0.1}, {"repetition_penalty": 0.0},
    ],
)  # fmt: skip
def test_distributions_that_do_not_exist(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}="):
        Sampling(**wrong)  # type: ignore[arg-type]


def likeliest_tokens(
    model: LanguageModel, read: list[int], num_tokens: int, size: int
) -> list[int]:
    """The likeliest tokens, each from the whole sequence before it."""
    tokens = list(read)
    for _ in range(num_tokens):
        logits_V = model(torch.tensor([tokens]))[0][0, -1]
        logits_V[[PAD, UNK, BOS, *range(size, len(logits_V))]] = -torch.inf
        tokens.append(int(logits_V.argmax()))
        if tokens[-1] == EOS:
            tokens[-1] = BOS  # an endless text goes on with a new one
    return tokens[len(read) :]


@torch.no_grad()
@pytest.mark.parametrize("make", [context_model, transformer])
def test_an_endless_continuation_keeps_its_state(
    tokenizer: Tokenizer, make: Callable[[int], LanguageModel]
) -> None:
    torch.manual_seed(3)
    model = make(tokenizer.size + 2).eval()
    read = tokenizer.encode_prompt("the dog")
    continuation = Continuation(model, tokenizer, Sampling(temperature=0), is_endless=True)
    continuation.read(read)
    drawn = [int(token_B) for token_B in islice(continuation, 20)]
    expected = likeliest_tokens(model, read, 20, tokenizer.size)
    assert [BOS if token == EOS else token for token in drawn] == expected


def test_reading_between_draws_is_part_of_the_text(
    model: LanguageModel, tokenizer: Tokenizer
) -> None:
    first = Continuation(model, tokenizer, seed=1)
    first.read(tokenizer.encode_prompt("the"))
    token = int(next(first))
    first.read([7, 8])
    second = Continuation(model, tokenizer)
    second.read([*tokenizer.encode_prompt("the"), *([] if token == EOS else [token]), 7, 8])
    assert first.state is not None
    assert second.state is not None
    for mine, theirs in zip(first.state, second.state, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_rows_end_each_for_itself(model: LanguageModel, tokenizer: Tokenizer) -> None:
    drawn_TB = torch.stack(list(Continuation(model, tokenizer, num_rows=30, seed=2)))
    assert (drawn_TB[-1] != PAD).any()
    for row_T in drawn_TB.T.tolist():
        end = row_T.index(EOS)
        assert not {PAD, UNK, BOS, EOS} & set(row_T[:end])
        assert set(row_T[end + 1 :]) <= {PAD}


def test_a_saved_state_goes_on(model: LanguageModel, tokenizer: Tokenizer) -> None:
    def greedy(read: str = "") -> Continuation:
        found = Continuation(model, tokenizer, Sampling(temperature=0), is_endless=True)
        found.read(tokenizer.encode_prompt(read))
        return found

    def next_ten(continuation: Continuation) -> list[int]:
        return [int(token_B) for token_B in islice(continuation, 10)]

    first = greedy("the dog barks")
    next_ten(first)
    saved, other = first.state_dict(), greedy("a dog")
    other.load_state_dict(saved)
    assert next_ten(other) == next_ten(first)
    for wrong in (7, {}, saved | {"state": (torch.zeros(2, 4),)}, saved | {"state": ()}):
        with pytest.raises(ValueError, match="this is not a state of this model"):
            other.load_state_dict(wrong)
    other.reset()
    assert other.state is None


STATEFUL: dict[str, Callable[..., LanguageModel]] = {
    "context": context_model,
    "transformer": transformer,
    "rotary": partial(transformer, positions="rotary"),
    "local": partial(hybrid, attention=partial(LocalAttention, window=3)),
    "sparse": partial(hybrid, attention=partial(SparseAttention, window=3, stride=2)),
    "contexts": context_attention_model,
    "delta": delta_model,
    "linear delta": linear_delta_model,
    "lstm": rnn_model,
}
OTHER_SIZES: list[tuple[str, dict[str, int]]] = [
    *(
        (name, {"context_dim": width})
        for name in ("context", "local", "sparse", "contexts", "delta")
        for width in (2, 4, 12)
    ),
    ("context", {"context_dim": 1}),  # which torch repeats to any size
    ("transformer", {"embedding_dim": 6}),
    ("rotary", {"embedding_dim": 12}),
    ("linear delta", {"hidden_dim": 10}),
    *(("lstm", {"hidden_dim": width}) for width in (1, 9)),
]


@pytest.mark.parametrize(("name", "sizes"), OTHER_SIZES, ids=str)
def test_a_state_of_other_widths_is_refused(
    tokenizer: Tokenizer, name: str, sizes: dict[str, int]
) -> None:
    models = [STATEFUL[name](tokenizer.size, **chosen).eval() for chosen in ({}, sizes)]
    own, other = (Continuation(model, tokenizer, is_endless=True) for model in models)
    for continuation in (own, other):
        continuation.read([*range(4, 9)])
    again = Continuation(models[0], tokenizer, is_endless=True)
    again.load_state_dict(own.state_dict())
    with pytest.raises(ValueError, match="this is not a state of this model"):
        again.load_state_dict(other.state_dict())
    assert [int(next(again)) for _ in range(4)] == [int(next(own)) for _ in range(4)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"_num_read": -1}, {"_num_read": "2"}, {"_drawn_B": torch.zeros(1)},
        {"_drawn_B": torch.tensor([10_000])}, {"_drawn_B": torch.tensor([-1])},
        {"_logits_BV": torch.zeros(1, 5)}, {"_logits_BV": 3}, {"_is_done_B": torch.zeros(1)},
        {"_seen_BV": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_state_is_refused(
    model: LanguageModel, tokenizer: Tokenizer, wrong: dict[str, Any]
) -> None:
    continuation = Continuation(model, tokenizer)
    continuation.read(tokenizer.encode_prompt("the"))
    with pytest.raises(ValueError, match="this is not a state of this model"):
        continuation.load_state_dict(continuation.state_dict() | wrong)


def test_a_table_of_positions_ends(tokenizer: Tokenizer) -> None:
    model = transformer(tokenizer.size, max_length=6).eval()
    continuation = Continuation(model, tokenizer, is_endless=True)
    read = tokenizer.encode_prompt("the dog")
    continuation.read(read)
    text: list[str] = []
    with pytest.raises(NoMorePositions, match="a table of 6 positions"):
        text.extend(text_of(continuation, tokenizer, start=read))
    assert "".join(text).startswith("the dog")
    assert text[-1] == "\n"


TEXTS = ["the cat  sleeps\n\tnow \u00e9 \u6f22\u5b57 \U0001f600 end", "a dog barks"] * 30
KINDS = {
    "words": {"kind": "words"},
    "bpe": {"kind": "bpe", "vocabulary_size": 300},
    "exact": {"kind": "bpe", "vocabulary_size": 300, "is_exact": True, "lowercase": False},
    "bytes": {"kind": "bytes"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_text_as_it_arrives_is_the_text_of_the_whole(kind: str) -> None:
    tokenizer = Tokenizer.train(TEXTS, **KINDS[kind])  # type: ignore[arg-type]
    ids = [token for text in TEXTS for token in tokenizer.encode(text)[1:-1]]
    assert len(ids) > 3 * MOST_TOKENS
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["exact", "bytes"])
def test_a_text_may_end_within_a_character(kind: str) -> None:
    tokenizer = Tokenizer.train(TEXTS, **KINDS[kind])  # type: ignore[arg-type]
    byte, *_ = tokenizer.encode("\u00ff")[1:]  # the first of two, unless they are one token
    ids = [*tokenizer.encode("the cat")[1:-1], byte]
    stream = TextStream(tokenizer)
    assert "".join(map(stream.add, ids)) == "the cat"
    assert stream.end() == "\ufffd"
    assert tokenizer.decode(ids) == "the cat\ufffd"
    stream = TextStream(tokenizer)
    stream.add(ids[0])
    assert stream.end() == ""
