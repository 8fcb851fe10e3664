"""Pairs of prompt and response: only the response is scored."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from library import small_library
from small_models import context_model

from newllm.data.batch import IGNORE
from newllm.data.sources.corpora import SPLITS
from newllm.data.sources.standard_library import standard_library_corpus
from newllm.data.sources.text import TextSource
from newllm.data.tokenizer import BOS, EOS, Tokenizer
from newllm.models.sampling import sample_sentences
from newllm.statistics.predictions import bits_per_byte, target_losses
from newllm.statistics.references import positions, references_on
from newllm.training.metrics import split_metrics

PAIRS = [(f"ask {n}", "yes é" * (1 + n % 3)) for n in range(20)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"prompt": prompt, "response": text}) for prompt, text in PAIRS]
    path.write_text("\n".join(lines))
    return path


def source(path: Path, **settings: Any) -> TextSource:
    settings = {"unit": "pair", "order_seed": 1, "directory": None} | settings
    data = TextSource(path=str(path), **settings)
    data.setup()
    return data


def test_a_row_is_a_pair_and_its_response_is_scored(file: Path) -> None:
    data = source(file)
    corpus, tokenizer = data.corpus, data.tokenizer
    assert sorted(
        pair
        for split in SPLITS
        for pair in zip(corpus.prompts[split], corpus.split(split), strict=True)
    ) == sorted(PAIRS)
    batch = next(iter(data.evaluation["validation"]))
    for tokens, targets, index in zip(*batch[:3], strict=True):
        prompt, response = corpus.prompts["validation"][index], corpus.validation[index]
        scored = targets[targets != IGNORE].tolist()
        assert scored == tokenizer.encode(response)[1:]
        read = [*tokenizer.encode(prompt)[:-1], BOS, *tokenizer.encode(response)[1:-1]]
        assert tokens[: len(read)].tolist() == read
        first = int((targets != IGNORE).nonzero()[0])
        assert tokens[: first + 1].tolist() == tokenizer.encode_prompt(prompt)
    assert data.card()["pairs"] == "16 train / 2 validation / 2 test"


def test_losses_and_references_are_of_responses(file: Path) -> None:
    data = source(file, validation_fraction=0.5)
    split = data.encoded("validation")
    responses = data.corpus.validation
    assert split.num_targets == sum(len(text.encode()) + 1 for text in responses)
    assert data.num_bytes("validation") == sum(len(text.encode()) for text in responses)
    model = context_model(data.vocabulary_size).eval()
    losses = target_losses(model, split)
    metrics = split_metrics(model, data.evaluation["validation"], data.tokenizer)
    assert metrics["loss"] == pytest.approx(losses.mean())
    assert bits_per_byte(losses, data, "validation")["value"] == pytest.approx(
        metrics["bits_per_byte"]
    )
    whole = [split[i] for i in range(len(split))]
    for index, ids in enumerate(whole):  # against each pair read alone
        logits_TV = model(ids[None, :-1])[0][0].log_softmax(-1)
        number = int(split.num_targets_N[index])
        own = -logits_TV[range(len(ids) - 1), ids[1:]][-number:]
        first = int(split.first_target_N[index])
        assert losses[first : first + number] == pytest.approx(own.detach().numpy(), abs=1e-5)
    assert positions(split)[: int(split.num_targets_N[0])].tolist() == list(
        range(1, 1 + int(split.num_targets_N[0]))
    )
    references = references_on(data, "validation")
    counts = np.bincount(data.encoded("train").targets.numpy(), minlength=260)
    assert counts[BOS] == 0
    assert counts.sum() == data.encoded("train").num_targets
    assert references.means["bigram"] < references.means["unigram"] < math.log(258)
    assert "xz" not in references.means


def test_a_head_of_pairs_keeps_what_is_scored(file: Path) -> None:
    split = source(file).encoded("train")
    head = split.head(20)
    assert head.targets.tolist() == split.targets[: head.num_targets].tolist()
    assert 0 < head.num_targets <= 20


def test_long_pairs_are_refused_or_dropped(file: Path) -> None:
    with pytest.raises(ValueError, match=r"of the \w+ pairs takes \d+ positions"):
        source(file, max_length=18)
    data = source(file, max_length=18, too_long="drop", validation_fraction=0.5)
    assert 0 < len(data.encoded("train")) < 8
    assert int(data.encoded("train").num_positions_N.max()) <= 18
    assert "dropped in train" in data.summary()
    for too_long in ("truncate", "chunk"):
        with pytest.raises(ValueError, match="a pair cannot be cut; choose error or drop"):
            source(file, too_long=too_long)
    with pytest.raises(ValueError, match=r"data=pairs: needs data\.path=FILE"):
        TextSource(unit="pair", order_seed=1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"}', "line 2 needs text as prompt and response"),
        ('["a", "b"]', "line 2 needs text as prompt and response"),
        ("{", "line 2 is not JSON"),
    ],
)
def test_faulty_lines_are_named(file: Path, line: str, message: str) -> None:
    file.write_text(f"{json.dumps({'prompt': 'a', 'response': 'b'})}\n{line}\n")
    with pytest.raises(ValueError, match=rf"^data\.path={file}: {message}"):
        source(file)


def test_a_prompt_ends_where_the_response_begins(file: Path, tmp_path: Path) -> None:
    """Of a saved tokenizer as well, and samples are responses alone."""
    data = source(file, tokenizer="bpe", vocabulary_size=270)
    (tmp_path / "tokenizer.json").write_text(data.tokenizer.to_json(), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    prompt = loaded.encode_prompt("ask 7")
    assert (prompt[0], prompt[-1], EOS in prompt) == (BOS, BOS, False)
    torch.manual_seed(0)
    model = context_model(data.vocabulary_size).eval()
    (sample,) = sample_sentences(model, loaded, 1, "ask 7", max_tokens=20)
    assert "ask 7" not in sample


def test_pairs_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_library(tmp_path, monkeypatch, num_modules=1)
    summaries = standard_library_corpus("stdlib_summaries")
    (code,) = summaries.prompts["train"]
    name = code.split("_")[1].split("(")[0]
    assert code == (
        f"def count_{name}(text):\n    return text.split().count('{name}')"  # as Python writes it
    )
    assert summaries.train == [f"How many times {name} is in a text."]
    loop = f'>>> for text in ["a {name}"]:\n...     count_{name}(text) + 1\n'
    dialogues = standard_library_corpus("stdlib_dialogues")
    assert sorted(zip(dialogues.prompts["train"], dialogues.train, strict=True)) == [
        (f'>>> count_{name}("")\n', "0"),
        (f'>>> count_{name}("")\n0\n{loop}', "2"),
        (f'>>> count_{name}("{name}  {name}")\n', "2"),
    ]
