"""Sampling from a model, and its faults."""

import pytest
import torch
from small_models import context_model

from newllm.data.tokenizer import Tokenizer
from newllm.models.language_model import LanguageModel
from newllm.models.sampling import sample_sentences

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
        model, tokenizer, 20_000, prompt="the", max_tokens=3, temperature=0.5
    )
    drawn = [sentence.removeprefix("the").strip() for sentence in sentences]
    counts = torch.tensor([drawn.count(word) for word in ["", *words]]) / len(drawn)
    torch.testing.assert_close(counts, expected, atol=0.015, rtol=0)


def test_faults(model: LanguageModel, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="max_tokens=-1: must be at least 1"):
        sample_sentences(model, tokenizer, 1, max_tokens=-1)
    with pytest.raises(ValueError, match="temperature=0"):
        sample_sentences(model, tokenizer, 1, temperature=0)
    with pytest.raises(ValueError, match=r"contains unknown words: \['zebra'\]"):
        sample_sentences(model, tokenizer, 1, prompt="the zebra")
    with pytest.raises(ValueError, match="num=0"):
        sample_sentences(model, tokenizer, 0)
    with pytest.raises(ValueError, match="the prompt has 3 tokens"):
        sample_sentences(model, tokenizer, 1, prompt="the dog", max_tokens=2)
