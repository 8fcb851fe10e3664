"""States of a model in files: a dialogue that keeps its own, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import good_run

from newllm.data.tokenizer import Tokenizer
from newllm.models.distribution import Sampling
from newllm.models.sampling import Continuation
from newllm.runs.directory import LoadedRun, load_run
from newllm.runs.generation import Dialogue
from newllm.runs.saved_state import read_state, write_state
from newllm.training.evaluation import evaluate_text

CONTENT: dict[str, Any] = {"state": None}


@pytest.fixture
def run(tmp_path: Path) -> LoadedRun:
    return load_run(good_run(tmp_path / "run"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.pt"


@pytest.fixture
def answers(
    run: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[list[str], list[str]]]:
    """Answers to lines, and what was told beside them."""

    def found(*lines: str) -> tuple[list[str], list[str]]:
        assert run.tokenizer is not None
        continuation = Continuation(run.model, run.tokenizer, Sampling(temperature=0))
        text = "".join(Dialogue(run, continuation, 5).answers(lines))
        return text.splitlines(), capsys.readouterr().err.splitlines()

    return found


def test_a_dialogue_keeps_its_state(answers: Any, file: Path) -> None:
    (first, second), told = answers("the dog", f"/save {file}", "a dog")
    assert told == [f"the state is in {file}"]
    (_, again), told = answers("the cat", f"/load {file}", "a dog")
    assert told == [f"the state is that of {file}"]
    assert again == second
    found, told = answers("the dog", "/reset", "the dog", "/quit", "the dog")
    assert found == [first, first]
    assert told == ["the state is that of the beginning"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("zebra", "the prompt contains unknown words: ['zebra']"),
        ("/sav", "no such command; /reset forgets everything"),
        ("/save", "/save: needs a file; /reset forgets everything"),
        ("/load nowhere.pt", "nowhere.pt: is not a saved state; No such file or directory"),
        (f"/load {__file__}", "is not a saved state; it is damaged, or was not written by torch"),
        ("/save nowhere/state.pt", "nowhere: no such folder; make it first"),
    ],
)
def test_a_dialogue_says_what_is_wrong(answers: Any, line: str, told: str) -> None:
    found, (fault,) = answers(line)
    assert found == []
    assert told in fault


def test_a_dialogue_replaces_no_other_file(answers: Any, file: Path) -> None:
    file.write_text("a text")
    ((), (fault,)) = answers(f"/save {file}")
    assert fault.startswith(f"{file}: exists and is not a saved state; it is damaged, or was not")
    assert fault.endswith("; choose another name")
    assert file.read_text() == "a text"


def test_a_state_belongs_to_its_weights_and_tokenizer(run: LoadedRun, file: Path) -> None:
    write_state(file, "text", run, CONTENT)
    assert read_state(file, "text", run) == CONTENT
    write_state(file, "text", run, CONTENT)  # a state may be replaced
    with torch.no_grad():
        next(run.model.parameters()).add_(1)
    told = f"{file}: is a state of another model than that of {run.path}"
    with pytest.raises(ValueError, match=f"^{told}$"):
        read_state(file, "text", run)
    write_state(file, "text", run, CONTENT)
    run = replace(run, tokenizer=Tokenizer.train(["the dog"]))
    with pytest.raises(ValueError, match=f"^{told}$"):
        read_state(file, "text", run)


def test_kinds_of_states_are_told_apart(answers: Any, run: LoadedRun, file: Path) -> None:
    answers("the dog", f"/save {file}")
    text = file.with_name("text.txt")
    text.write_text("the dog")
    told = (
        f"{file}: was written by /save of newllm.generate; "
        "this takes what --save-state of newllm.evaluate wrote"
    )
    with pytest.raises(ValueError, match=f"^{told}$"):
        evaluate_text(run.path, text, start=file)
    evaluate_text(run.path, text, end=file)
    assert "this takes what /save of newllm.generate wrote" in answers(f"/load {file}")[1][0]


@pytest.mark.parametrize("content", [7, {}, {"model": {}}, {"kind": [], "model": 0, "content": 0}])
def test_other_files_of_torch_are_no_states(run: LoadedRun, file: Path, content: object) -> None:
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"state.pt: is not a saved state$"):
        read_state(file, "text", run)
    with pytest.raises(ValueError, match=r"exists and is not a saved state; choose another name$"):
        write_state(file, "text", run, CONTENT)


def test_nothing_is_lost_where_a_text_is_scored(run: LoadedRun, file: Path) -> None:
    text = file.with_name("text.txt")
    text.write_text("the dog")
    with pytest.raises(ValueError, match=r"text.txt: exists and is not a saved state"):
        evaluate_text(run.path, text, end=text)
    assert text.read_text() == "the dog"


@pytest.mark.parametrize("content", ["", " \n"])
@pytest.mark.parametrize("saves", [False, True])
def test_a_text_without_tokens_has_no_score(
    run: LoadedRun, file: Path, content: str, saves: bool
) -> None:
    text = file.with_name("text.txt")
    text.write_text(content)
    with pytest.raises(ValueError, match=r"text.txt: has no tokens$"):
        evaluate_text(run.path, text, end=file if saves else None)
    assert not file.exists()


def test_an_empty_text_may_end_another(run: LoadedRun, file: Path) -> None:
    text = file.with_name("text.txt")
    text.write_text("the dog")
    evaluate_text(run.path, text, end=file)
    text.write_text("")
    evaluate_text(run.path, text, start=file)


def test_a_state_is_saved_before_the_score_is_shown(
    run: LoadedRun, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("newllm.training.evaluation.print_score", closed)
    text = file.with_name("text.txt")
    text.write_text("the dog")
    with pytest.raises(BrokenPipeError):
        evaluate_text(run.path, text, end=file)
    assert read_state(file, "text", run)["numbers"] == [1, 1]
