"""Sampling sentences from a language model.

Shapes: B sentences, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from newllm.data.batch import device_of
from newllm.data.tokenizer import BOS, EOS, PAD, UNK, Tokenizer
from newllm.models.language_model import LanguageModel


@torch.no_grad()
def sample_sentences(
    model: LanguageModel,
    tokenizer: Tokenizer,
    num_sentences: int,
    prompt: str = "",
    max_tokens: int = 32,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """Continue a prompt up to `<EOS>` or `max_tokens` tokens, including the prompt.

    A model of pairs of prompts and responses gives the responses alone.

    `<PAD>`, `<UNK>`, `<BOS>` and classes without a word are never drawn.

    Raises:
        ValueError: the model sees the future, an argument is out of range, or the prompt is longer
            than `max_tokens` or holds unknown words.
    """
    if model.sees_the_future:
        raise ValueError(
            "the model was trained with access to future tokens and cannot generate text"
        )
    for name, number in {"num": num_sentences, "max_tokens": max_tokens}.items():
        if number < 1:
            raise ValueError(f"{name}={number}: must be at least 1")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature}: must be above 0")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed}: must be from 0 to 2**63 - 1")
    prompt_tokens = tokenizer.encode_prompt(prompt)
    if UNK in prompt_tokens:
        unknown = [word for word in prompt.split() if UNK in tokenizer.encode_prompt(word)]
        raise ValueError(f"the prompt contains unknown words: {unknown}")
    if len(prompt_tokens) > max_tokens:
        raise ValueError(f"the prompt has {len(prompt_tokens)} tokens; the maximum is {max_tokens}")
    never_V = torch.ones(model.vocabulary_size, dtype=torch.bool)
    never_V[: tokenizer.size] = False
    never_V[[PAD, UNK, BOS]] = True
    device, generator = device_of(model), torch.Generator().manual_seed(seed)
    sentences: list[list[int]] = [list(prompt_tokens) for _ in range(num_sentences)]
    done_B = torch.zeros(num_sentences, dtype=torch.bool)
    logits_BTV, state = model(torch.tensor(sentences, device=device))
    for _ in range(max_tokens - len(prompt_tokens)):
        token_B = _draw(logits_BTV[:, -1].cpu(), never_V, temperature, generator)
        done_B |= token_B == EOS
        if done_B.all():
            break
        token_B = token_B.masked_fill(done_B, PAD)
        for sentence, token in zip(sentences, token_B.tolist(), strict=True):
            sentence.append(token)
        logits_BTV, state = model(token_B[:, None].to(device), state)
    first = len(prompt_tokens) if tokenizer.is_of_pairs else 0
    return [tokenizer.decode(sentence[first:]) for sentence in sentences]


def _draw(
    logits_BV: Tensor, never_V: Tensor, temperature: float, generator: torch.Generator
) -> Tensor:
    if not bool(logits_BV.isfinite().all()):
        raise ValueError("the model's logits are not finite: its weights are too large")
    probabilities_BV = (logits_BV.masked_fill(never_V, -torch.inf) / temperature).softmax(-1)
    return torch.multinomial(probabilities_BV, 1, generator=generator)[:, 0]
