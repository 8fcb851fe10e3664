"""`newllm.generate` as users call it: options that do not fit, and how it ends."""

import os
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from conftest import Command
from hostile import good_run
from small_models import context_model, transformer

from newllm import generate
from newllm.data.tokenizer import Tokenizer
from newllm.models.sampling import Continuation, prompt_tokens
from newllm.runs.directory import load_run
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
        ("--temperature 0 --min-p 0.1", "--min-p: is not used with --temperature 0"),
        ("--seed -1", "--seed -1: must be at least 0"),
        ("-n 0", "--num 0: must be at least 1"),
        ("--max-tokens -1", "--max-tokens -1: must be at least 0"),
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


def test_bytes_that_are_no_text(
    command: Command, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = "the prompt is not UTF-8 text\n"
    done = command("newllm.generate", str(run), "--prompt", os.fsdecode(b"the \xff"))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)
    for kind in ({}, {"kind": "bpe", "vocabulary_size": 300}, {"kind": "bytes"}):
        tokenizer = Tokenizer.train(["the cat"], **kind)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^the prompt is not UTF-8 text$"):
            prompt_tokens(tokenizer, "the \udcff")
    found = load_run(run)
    assert found.tokenizer is not None
    dialogue = Dialogue(found, Continuation(found.model, found.tokenizer))
    assert [*dialogue.answers(["the \udcff", "/load \udcff"])] == []
    missing = "\N{REPLACEMENT CHARACTER}: is not a saved state; No such file or directory\n"
    assert capsys.readouterr().err == told + missing


def ended_with(line: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit code or message of the command in this process."""
    monkeypatch.setattr("sys.argv", ["newllm.generate", *line])
    with pytest.raises(SystemExit) as ended:
        generate.main()
    return ended.value.code


def test_standard_input_that_is_no_text(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"the \xff"), encoding="utf-8"))
    assert ended_with([str(run), "--prompt", "-"], monkeypatch) == "the prompt is not UTF-8 text"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("--top-k 0 --min-p 2", "--top-k 0: must be at least 1\n--min-p 2.0: must be from 0 to 1"),
        ("--temperature inf", "--temperature inf: must be finite, and at least 0"),
        (
            "-n 2 --max-tokens 1 --prompt the",
            "the prompt has 2 tokens; the maximum is 1; raise --max-tokens",
        ),
    ],
)
def test_options_that_are_out_of_range(
    run: Path, monkeypatch: pytest.MonkeyPatch, line: str, fault: str
) -> None:
    assert ended_with([str(run), *line.split()], monkeypatch) == fault


def test_no_more_tokens_than_positions(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last token is drawn and not read, so that it needs no position."""
    own = load_run(run)
    model = transformer(own.model.vocabulary_size, max_length=6).eval()
    monkeypatch.setattr("newllm.runs.directory.load_run", lambda *_: replace(own, model=model))
    told = "--max-tokens 8: the model has positions for 7 at most"
    for more in ((), ("--endless",), ("-n", "1")):
        assert ended_with([str(run), "--max-tokens=8", *more], monkeypatch) == told
        monkeypatch.setattr("sys.argv", ["newllm.generate", str(run), "--max-tokens=7", *more])
        generate.main()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(21, "Is a directory"), "[Errno 21] Is a directory"),
        (IndexError(), "IndexError"),
        (RuntimeError("can't allocate memory: you tried\nto"), "can't allocate memory: you tried"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_fails_while_it_draws_is_told_in_a_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def pieces(options: Namespace) -> Iterator[str]:
        yield "the cat"
        raise error

    monkeypatch.setattr(generate, "_pieces", pieces)
    assert str(ended_with([str(run)], monkeypatch)).startswith(told)


def test_many_sentences_are_shown_group_by_group(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def drawn(num: int) -> list[str]:
        monkeypatch.setattr("sys.argv", ["newllm.generate", str(run), "-n", str(num)])
        generate.main()
        return capsys.readouterr().out.splitlines()

    monkeypatch.setattr(generate, "AT_ONCE", 3)
    first, whole = drawn(3), drawn(8)
    assert len(whole) == 8
    assert whole[:3] == first
    assert len({tuple(whole[start : start + 2]) for start in (0, 3, 6)}) == 3  # of seeds their own


def test_a_full_disk_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.print", full)
    told = "the output cannot be written; No space left on device"
    assert ended_with([str(run)], monkeypatch) == told


def test_interruption_ends_the_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pieces(options: Namespace) -> Iterator[str]:
        yield "the cat"
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "_pieces", pieces)
    assert ended_with([str(run), "--endless"], monkeypatch) == 130
    assert capsys.readouterr() == ("the cat", "\n")
