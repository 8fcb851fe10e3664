"""What is kept of a large text: equal to what is computed, never stale, never needed."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import newllm
from newllm.data import cache
from newllm.data.cache import Arrays, Cache
from newllm.data.sources import text as text_source
from newllm.data.sources.text import TextSource
from newllm.statistics.references import ReferenceModels

Build = Callable[..., TextSource]


def never() -> Arrays:
    raise AssertionError("it was computed before")


def numbers() -> Arrays:
    return {"a": np.arange(5), "b": np.array([0.5])}


def filled(folder: Path) -> Path:
    """The one entry of a cache that holds `numbers`."""
    made = Cache(folder)
    made.get("numbers", {"n": 1}, numbers)
    made.write()
    (path,) = folder.iterdir()
    return path


def test_arrays_come_back(tmp_path: Path) -> None:
    path = filled(tmp_path / "new" / "cache")
    found = Cache(path.parent).get("numbers", {"n": 1}, never)
    assert {name: array.tolist() for name, array in found.items()} == {
        "a": [0, 1, 2, 3, 4],
        "b": [0.5],
    }


def test_nothing_is_written_unasked(tmp_path: Path) -> None:
    Cache(tmp_path).get("numbers", {}, numbers)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "depends_on"), [("others", {"n": 1}), ("numbers", {"n": 2}), ("numbers", {})]
)
def test_another_key_is_another_entry(
    tmp_path: Path, name: str, depends_on: dict[str, Any]
) -> None:
    filled(tmp_path)
    with pytest.raises(AssertionError, match="computed before"):
        Cache(tmp_path).get(name, depends_on, never)


def test_changed_code_computes_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    monkeypatch.setattr(cache, "_code_digest", lambda: "changed")
    with pytest.raises(AssertionError, match="computed before"):
        Cache(tmp_path).get("numbers", {"n": 1}, never)


def test_entries_depend_on_all_code_that_computes_them() -> None:
    top = Path(newllm.__file__).parent
    code = {file for pattern in cache.CODE for file in top.glob(pattern)}
    imported = {
        top.parent / f"{node.module.replace('.', '/')}.py"
        for file in code
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("newllm.")
    }
    assert {file for file in imported - code if "config" not in file.parts} == set()


@pytest.mark.parametrize("name", ["a.npy", cache.NAMES])
@pytest.mark.parametrize("damaged", [b"", b"x" * 500, 10, -3, None])
def test_a_damaged_or_missing_file_is_computed_and_written_anew(
    tmp_path: Path, name: str, damaged: bytes | int | None
) -> None:
    path = filled(tmp_path) / name
    if damaged is None:
        path.unlink()
    else:
        path.write_bytes(damaged if isinstance(damaged, bytes) else path.read_bytes()[:damaged])
    again = Cache(tmp_path)
    assert again.get("numbers", {"n": 1}, numbers)["a"].tolist() == [0, 1, 2, 3, 4]
    again.write()
    Cache(tmp_path).get("numbers", {"n": 1}, never)


def test_arrays_are_mapped_and_cannot_be_changed(tmp_path: Path) -> None:
    filled(tmp_path)
    found = Cache(tmp_path).get("numbers", {"n": 1}, never)
    assert isinstance(found["a"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 1


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    entry = filled(tmp_path)
    np.save(entry / "a.npy", np.array([print], dtype=object))
    assert Cache(tmp_path).get("numbers", {"n": 1}, numbers)["a"].tolist() == [0, 1, 2, 3, 4]


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    made = Cache(tmp_path / "file" / "cache")
    made.get("numbers", {}, numbers)
    made.write()


def test_the_files_together_stay_below_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.npy").write_bytes(b"x" * 10_000)
    size = sum(file.stat().st_size for file in filled(tmp_path / "one").iterdir())
    monkeypatch.setattr(cache, "MAX_BYTES", 2 * size)
    for n in range(4):
        made = Cache(tmp_path)
        made.get("numbers", {"n": n}, numbers)
        made.write()
    Cache(tmp_path).get("numbers", {"n": 3}, never)
    # Two of them, and what is not its own.
    assert len([entry for entry in tmp_path.iterdir() if entry.name != "one"]) == 3


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds data modules of a small text that counts as large."""
    monkeypatch.setattr(text_source, "LARGE_TEXT", 1)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the {i % 7} cat saw {i % 5} dogs and {i % 3}\n" for i in range(60)))

    def build_data(**settings: Any) -> TextSource:
        settings = {"path": str(text), "directory": str(tmp_path / "data")} | settings
        data = TextSource(order_seed=0, **settings)
        data.setup()
        return data

    return build_data


def test_a_text_is_tokenized_and_counted_once(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"tokenizer": "bpe", "vocabulary_size": 280, "max_length": 90}
    first = build(**settings)
    counted = ReferenceModels(first).on("validation").means
    stages = ["reading", "training the tokenizer", "encoding the text", "counting words"]
    stages.append("counting n-grams")
    said = capsys.readouterr().err.splitlines()
    assert [line.startswith(stage) for line, stage in zip(said, stages, strict=True)] == [True] * 5
    assert not (tmp_path / "data").exists()
    first.write()

    second = build(**settings)
    assert ReferenceModels(second).on("validation").means == counted
    assert capsys.readouterr().err == ""  # not even the text is read
    assert second.tokenizer.to_json() == first.tokenizer.to_json()
    for split in ("train", "validation", "test"):
        assert second.encoded(split).targets.equal(first.encoded(split).targets)


def test_what_changes_the_tokens_is_not_taken_from_before(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build().write()
    capsys.readouterr()
    cut = build(max_length=4, too_long="truncate", train_sentences=9)
    assert "tokenizer" not in capsys.readouterr().err
    assert int(cut.encoded("train").num_positions_N.max()) == 4
    assert len(cut.encoded("train")) == 9
    for change in (
        {"seed": 3},
        {"lowercase": False},
        {"vocabulary_size": 9},
        {"test_fraction": 0.0},
    ):
        build(**change)
        assert "training the tokenizer" in capsys.readouterr().err
    with (tmp_path / "text.txt").open("a") as file:
        file.write("one more\n")
    build()
    assert "training the tokenizer" in capsys.readouterr().err


def test_a_small_text_is_silent_and_not_kept(
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(text_source, "LARGE_TEXT", 1_000_000)
    data = build()
    ReferenceModels(data).on("validation")
    data.write()
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "data").exists()
