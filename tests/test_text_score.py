"""A text of any length, scored with one state, against the whole text at once.

Shapes: B one row, T tokens.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY_CONTEXT, Command
from hostile import good_run
from small_models import context_model, rnn_model, transformer

from newllm.data.sources.text import read_text_corpus
from newllm.data.tokenizer import BEFORE_BLANK, BOS, EOS, UNK, Tokenizer
from newllm.models.language_model import LanguageModel
from newllm.statistics import text_score
from newllm.statistics.text_score import TextScore, score_text, tokens_of_file
from newllm.training.evaluation import evaluate_text

WORDS = "the cat sleeps while a dog barks at the moon and nobody sings"
TEXT = "\n".join(WORDS[i % 7 : i % 7 + 26] + " \u00e9\u6f22" * (i % 3) for i in range(60))
KINDS = {
    "words": {"kind": "words"},
    "bpe": {"kind": "bpe", "vocabulary_size": 300},
    "exact": {"kind": "bpe", "vocabulary_size": 300, "is_exact": True, "lowercase": False},
    "bytes": {"kind": "bytes", "lowercase": False},
}


def tokenizer_of(kind: str) -> Tokenizer:
    return Tokenizer.train([TEXT.replace("\n", " ")], **KINDS[kind])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_give_the_tokens_of_the_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_score, "BLOCK", 37)
    tokenizer, file = tokenizer_of(kind), tmp_path / "text.txt"
    file.write_text(TEXT)
    whole = TEXT if tokenizer.is_exact else " ".join(TEXT.split())
    assert [BOS, *tokens_of_file(file, tokenizer)] == tokenizer.encode(whole)
    assert [BOS, *tokens_of_file(file, tokenizer, is_whole=False)] == tokenizer.encode(whole)[:-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1, 3, 64, 1 << 16])
def test_a_file_is_read_as_for_training(
    kind: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what some editors write: a byte order mark, and other line ends, also at the end."""
    monkeypatch.setattr(text_score, "BLOCK", block)
    text = "\n the cat\n\nsings  to nobody" + "at" * 60 + "\n \n"
    tokenizer, file = tokenizer_of(kind), tmp_path / "text.txt"
    file.write_bytes(("\ufeff" + text).replace("\n", "\r\n").encode())
    read = read_text_corpus({"path": file, "validation_path": file}, unit="document",
                            test_fraction=0.0, lowercase=False).train[0]  # fmt: skip
    assert read == text
    whole = text if tokenizer.is_exact else " ".join(text.split())
    assert [BOS, *tokens_of_file(file, tokenizer)] == tokenizer.encode(whole)


def test_a_text_without_blanks_is_searched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []

    class Pattern:
        def finditer(self, text: str) -> Iterator[re.Match[str]]:
            searched.append(len(text))
            return BEFORE_BLANK.finditer(text)

    monkeypatch.setattr(text_score, "BLOCK", 10)
    monkeypatch.setattr(text_score, "BEFORE_BLANK", Pattern())
    (tmp_path / "text.txt").write_text("word" * 100)
    assert len([*tokens_of_file(tmp_path / "text.txt", tokenizer_of("bytes"))]) == 401
    assert sum(searched) < 450


@torch.no_grad()
@pytest.mark.parametrize("make", [context_model, rnn_model, partial(transformer, max_length=200)])
def test_chunks_give_the_losses_of_the_whole(
    make: Callable[[int], LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_score, "CHUNK", 11)
    tokenizer = tokenizer_of("exact")
    torch.manual_seed(0)
    model = make(tokenizer.size).eval()
    ids = tokenizer.encode(TEXT)[:200]
    tokens_BT = torch.tensor([ids])
    loss_BT, *_ = model.score(tokens_BT[:, :-1], tokens_BT[:, 1:])
    score = TextScore()
    score_text(model, tokenizer, ids[1:], score)
    assert score.numbers == [1, 2, 4, 8, 16, 32, 64, 72]
    expected = [float(loss_BT[0, 2**k - 1 : 2 ** (k + 1) - 1].sum()) for k in range(8)]
    assert score.losses == pytest.approx(expected, rel=1e-5)
    assert score.loss == pytest.approx(float(loss_BT.mean()), rel=1e-5)
    num_bytes = len(tokenizer.decode(ids).encode())
    assert score.bits_per_byte == pytest.approx(float(loss_BT.sum()) / math.log(2) / num_bytes)


def test_unknown_words_are_counted_and_stand_for_no_bytes() -> None:
    tokenizer = tokenizer_of("words")
    score = TextScore()
    score_text(context_model(tokenizer.size).eval(), tokenizer, [7, UNK, UNK, EOS], score)
    assert (score.num_unknown, score.num_tokens, score.bits_per_byte) == (2, 4, None)


def test_a_text_longer_than_the_positions_is_refused() -> None:
    tokenizer = tokenizer_of("words")
    model = transformer(tokenizer.size, max_length=6).eval()
    score = TextScore()
    score_text(model, tokenizer, [7] * 4, score)
    score_text(model, tokenizer, [7] * 2, score)
    told = "the text is longer than the 6 tokens for which the model has positions"
    with pytest.raises(ValueError, match=f"^{told}$"):
        score_text(model, tokenizer, [7], score)


def test_states_that_cannot_be_loaded_or_saved(tmp_path: Path) -> None:
    run, text, saved = good_run(tmp_path / "run"), tmp_path / "text.txt", tmp_path / "state.pt"
    text.write_text("the girl sings")
    evaluate_text(run, text, end=saved)
    content = torch.load(saved, weights_only=True)
    evaluate_text(run, text, start=saved)
    for wrong in (
        {"state": (torch.zeros(1, 5),)}, {"last": 10_000}, {"last": "3"}, {"num_unknown": None},
        {"losses": [[1.0]]}, {"numbers": (1, 2)},
    ):  # fmt: skip
        torch.save(content | {"content": content["content"] | wrong}, saved)
        with pytest.raises(ValueError, match=r"is damaged; it holds no state of a text$"):
            evaluate_text(run, text, start=saved)
    with pytest.raises(ValueError, match=r"^nowhere: no such folder; make it first$"):
        evaluate_text(run, tmp_path / "not looked at", end=Path("nowhere/state.pt"))
    with pytest.raises(ValueError, match=r"run: is a folder, not a file$"):
        evaluate_text(run, tmp_path / "not looked at", end=run)


def test_the_command(command: Command, tmp_path: Path) -> None:
    data = ["data=text", "data.path=text.txt", "data.tokenizer=bytes", "data.too_long=chunk"]
    (tmp_path / "text.txt").write_text(TEXT)
    made = command("newllm.train", *data, "trainer=smoke", *TINY_CONTEXT, "countermeasure=none",
                   "logger=none", "hydra.run.dir=run")  # fmt: skip
    assert made.returncode == 0, made.stderr

    def last_line(*arguments: str) -> str:
        done = command("newllm.evaluate", "run", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    (tmp_path / "one.txt").write_text(TEXT[:700])
    (tmp_path / "two.txt").write_text(TEXT[700:])
    whole = last_line("--text", "text.txt")
    assert "bits per byte" in whole
    last_line("--text", "one.txt", "--save-state", "state.pt")
    assert last_line("--text", "two.txt", "--state", "state.pt") == whole
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "other.pt").write_text(json.dumps({}))
    for wrong in (
        ("--text", "nowhere"),
        ("--text", "broken.txt"),
        ("--text", "one.txt", "--state", "nowhere"),
        ("--text", "one.txt", "--state", "other.pt"),
        ("--state", "state.pt"),
    ):
        done = command("newllm.evaluate", "run", *wrong)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
