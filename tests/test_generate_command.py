"""`newllm.generate` as users call it: options that do not fit, and how it ends."""

import os
from argparse import Namespace
from collections.abc import Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from conftest import Command
from hostile import good_run
from small_models import context_model

from newllm import generate
from newllm.data.tokenizer import Tokenizer
from newllm.models.sampling import Continuation, prompt_tokens
from newllm.runs.generation import Dialogue, text_of

TOKENIZER = Tokenizer.train(["the cat sleeps", "the dog barks"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("--interactive --prompt the", "--prompt: is not used with --interactive"),
        ("--interactive -n 3", "--num: is not used with --interactive"),
        ("--endless -n 3", "--num: is not used with --endless"),
        ("--greedy --temperature 0.5", "--temperature: is not used with --greedy"),
        ("--greedy --top-k 3", "--top-k: is not used with --greedy"),
        ("--greedy --top-p 0.5", "--top-p: is not used with --greedy"),
        ("--greedy --min-p 0.1", "--min-p: is not used with --greedy"),
    ],
)
def test_options_that_would_be_ignored(command: Command, line: str, fault: str) -> None:
    done = command("newllm.generate", "nowhere", *line.split())
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{fault}; see --help\n")


def test_a_text_may_be_left_before_its_end() -> None:
    model = context_model(TOKENIZER.size).eval()
    text = text_of(Continuation(model, TOKENIZER, is_endless=True), TOKENIZER)
    next(text)
    next(text)
    text.close()  # as Python does when the reader is gone


def test_bytes_that_are_no_text(command: Command, run: Path) -> None:
    told = "the prompt is not UTF-8 text\n"
    done = command("newllm.generate", str(run), "--prompt", os.fsdecode(b"the \xff"))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)
    for kind in ({}, {"kind": "bpe", "vocabulary_size": 300}, {"kind": "bytes"}):
        tokenizer = Tokenizer.train(["the cat"], **kind)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^the prompt is not UTF-8 text$"):
            prompt_tokens(tokenizer, "the \udcff")
    dialogue = Dialogue(Continuation(context_model(TOKENIZER.size).eval(), TOKENIZER), TOKENIZER)
    lines = ["the \udcff", "/load \udcff"]
    assert [*dialogue.answers(lines)] == [
        told,
        "\N{REPLACEMENT CHARACTER}: No such file or directory\n",
    ]


def ended_with(line: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit code or message of the command in this process."""
    monkeypatch.setattr("sys.argv", ["newllm.generate", *line])
    with pytest.raises(SystemExit) as ended:
        generate.main()
    return ended.value.code


def test_standard_input_that_is_no_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"the \xff"), encoding="utf-8"))
    assert ended_with([str(run), "--prompt", "-"], monkeypatch) == "the prompt is not UTF-8 text"


def test_interruption_ends_the_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pieces(options: Namespace) -> Iterator[str]:
        yield "the cat"
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "_pieces", pieces)
    assert ended_with([str(run), "--endless"], monkeypatch) == 130
    assert capsys.readouterr() == ("the cat", "\n")
