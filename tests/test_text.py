"""Files of the user's own: units, folders, files for each split, and what is lost."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_CONTEXT, Command, Compose

from newllm.data.sources.corpora import SPLITS, Corpus
from newllm.data.sources.text import TextSource, read_text_corpus
from newllm.runs.identity import config_hash
from newllm.training.experiment import build_experiment

ARTICLES = """\
 = First = \n \n One two . \n \n = = Part = = \n \n Three . \n
 = Second @-@ one = \n \n Four = five . \n
"""


def read(path: Path, unit: str, **settings: Any) -> Corpus:
    return read_text_corpus({"path": path}, unit=unit, **settings)


def texts(corpus: Corpus) -> list[str]:
    return [text for split in SPLITS for text in corpus.split(split)]


def test_units(tmp_path: Path) -> None:
    path = tmp_path / "wiki.tokens"
    path.write_text(ARTICLES * 2)
    articles = texts(read(path, "article", lowercase=False))
    assert {text.split("\n")[0] for text in articles} == {" = First = ", " = Second @-@ one = "}
    assert sorted("".join(articles)) == sorted(ARTICLES * 2)  # nothing is lost
    lines = texts(read(path, "line", lowercase=False))
    assert set(lines) == {" ".join(line.split()) for line in ARTICLES.split("\n")} - {""}
    path.write_text("a  b\nc\n\n \t\nd\n\n\n\ne\n")
    assert sorted(texts(read(path, "paragraph"))) == ["a  b\nc", "d", "e\n"]


def test_a_folder_holds_documents(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for number in range(6):
        file = tmp_path / ("below" if number % 2 else "") / f"{number}.txt"
        file.write_bytes(f"Text {number}\r\n\r\nends  here".encode())
    (tmp_path / ".hidden").write_bytes(b"\0")
    (tmp_path / "more.jsonl").write_text('{"text": "a\\u2028b"}\n\n{"text": "c", "id": 7}\n')
    corpus = read(tmp_path, "document")
    expected = [f"text {number}\n\nends  here" for number in range(6)]
    assert sorted(texts(corpus)) == sorted([*expected, "a\u2028b", "c"])
    assert corpus.unit == "documents"
    assert sorted(map(len, (corpus.train, corpus.validation, corpus.test))) == [1, 1, 6]
    (tmp_path / "more.jsonl").write_text('{"text": "a"}\n{"txt": "c"}\n')
    with pytest.raises(ValueError, match=r"more\.jsonl: line 2 needs text as text"):
        read(tmp_path, "document")


def test_each_split_may_have_its_own_files(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"ptb.{name}.txt").write_text(f" {name} <unk> \n" * 3 + " last N \n")
    paths = {"path": tmp_path / "ptb.train.txt"}
    paths |= {f"{split}_path": tmp_path / f"ptb.{split[:5]}.txt" for split in SPLITS[1:]}
    corpus = read_text_corpus(paths)
    assert corpus.train == ["train <unk>"] * 3 + ["last n"]  # in the order of the file
    assert corpus.validation == ["valid <unk>"] * 3 + ["last n"]
    assert corpus.test == ["test <unk>"] * 3 + ["last n"]
    assert corpus.location("test", 3) == f"{tmp_path}/ptb.test.txt:4"
    del paths["test_path"]
    partly = read_text_corpus(paths, test_fraction=0.25)
    assert partly.validation == corpus.validation
    assert sorted([*partly.train, *partly.test]) == sorted(corpus.train)
    assert len(partly.test) == 1


@pytest.mark.parametrize(
    ("unit", "advice"),
    [("line", "put one on each line"), ("document", "name other files with data.validation_path")],
)
def test_too_little_text_is_told_with_a_way_out(tmp_path: Path, unit: str, advice: str) -> None:
    path = tmp_path / "one.txt"
    path.write_text("one text")
    with pytest.raises(ValueError, match=rf"too few .* to be split \(1\): {advice}"):
        read(path, unit)


def source(path: Path, **settings: Any) -> TextSource:
    built = TextSource(order_seed=1, directory=None, path=str(path), **settings)
    built.setup()
    return built


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.txt").write_text(
            f"Document {number}:\n" + "words, words\n" * number**2
        )
    return folder


def test_documents_are_cut_into_rows_and_nothing_is_lost(documents: Path) -> None:
    data = source(documents, unit="document", max_length=20)
    assert sum(data.num_bytes(split) for split in SPLITS) == sum(
        file.stat().st_size for file in documents.iterdir()
    )
    assert data.card()["too long"] == "none"
    assert data.card()["documents"] == "16 train / 2 validation / 2 test"
    assert "Document" in data.texts("train")[0]
    assert data.train.batch(0, 0).tokens_BT.shape[1] == 20
    assert source(documents, unit="document").max_length == 256


@pytest.mark.parametrize("too_long", ["truncate", "drop"])
def test_the_card_tells_what_is_lost(documents: Path, too_long: str) -> None:
    whole = source(documents, unit="document")
    data = source(documents, unit="document", max_length=3000, too_long=too_long)
    lengths = [2 + file.stat().st_size for file in documents.iterdir()]
    kept = [length if length <= 3001 else 3001 * (too_long == "truncate") for length in lengths]
    share = 1 - sum(kept) / sum(lengths)
    assert 0.1 < share < 0.9
    assert f"({share:.1%} of all tokens are lost)" in data.card()["too long"]
    assert f"({share:.1%} of all tokens are lost)" in data.summary()
    assert data.num_bytes("train") < whole.num_bytes("train")
    assert (data.texts("train") is None) == (too_long == "truncate")


def test_words_of_documents_have_no_bytes(documents: Path) -> None:
    data = source(documents, unit="document", tokenizer="words", lowercase=True)
    assert data.num_bytes("train") is None
    assert "bits_per_byte" not in data.evaluation["validation"].metrics
    assert "document" in data.tokenizer.to_json()


def test_bytes_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The  cat\n" * 10)
    data = source(path, tokenizer="bytes")
    assert data.texts("validation") == ["the cat"]
    assert data.num_bytes("validation") == 7


def test_the_content_of_a_folder_is_part_of_what_a_run_is(
    documents: Path, compose_config: Compose, tmp_path: Path
) -> None:
    def hash_of(path: Path) -> str:
        return config_hash(compose_config("data=text", f"data.path={path}", "data.unit=document"))

    before = hash_of(documents)
    moved = documents.rename(tmp_path / "moved")
    assert hash_of(moved) == before
    (moved / "0.txt").write_text("Changed")
    assert hash_of(moved) != before


def test_a_length_that_follows_from_the_data_does_not_change_what_a_run_is(
    documents: Path, compose_config: Compose, tmp_path: Path
) -> None:
    """Or a sweep would not know its own runs again."""
    overrides = ("data=text", f"data.path={documents}", "data.unit=document", "recipe=modern")
    config = compose_config(*overrides, *TINY_CONTEXT, "countermeasure=none", "trainer=smoke")
    built = build_experiment(config, tmp_path / "run").config
    assert built.model.max_length == 256
    assert config_hash(built) == config_hash(config)


def test_the_commands(command: Command, documents: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = command("newllm.train", "data=text", f"data.path={documents}", "data.unit=document",
                   "data.max_length=64", "trainer=smoke", "recipe=modern", "countermeasure=none",
                   *TINY_CONTEXT, f"hydra.run.dir={run}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "bits per byte (95 % interval over 2 documents)" in done.stdout
    result = json.loads((run / "result.json").read_text())
    test = result["bits_per_byte"]["test"]
    assert test["value"] == pytest.approx(result["evaluation"]["test"]["bits_per_byte"], rel=1e-4)
    assert test["value"] == result["test_bits_per_byte"]
    assert {"xz", "trigram"} <= result["references_bits_per_byte"].keys()
    of_test = result["test_references_bits_per_byte"]
    assert of_test.keys() == result["references_bits_per_byte"].keys()
    assert result["data_card"]["sha256"] == result["data_sha256"]
    done = command("newllm.evaluate", str(run))
    assert done.returncode == 0, done.stderr
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())["splits"]
    assert found["test"]["bits_per_byte"]["value"] == pytest.approx(test["value"], rel=1e-4)
    assert found["validation"]["references_bits_per_byte"] == result["references_bits_per_byte"]
    assert found["test"]["references_bits_per_byte"] == of_test
    assert re.search(r"^ *bits per byte +train +validation +test", done.stdout, re.MULTILINE)
    done = command("newllm.generate", str(run), "--prompt", "Docu\nment", "--num", "2")
    assert done.stdout.count("Docu\nment") == 2, done.stderr


def test_settings_that_do_not_fit_are_refused(documents: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.unit=word: no such option; options: line"):
        TextSource(path=str(documents), unit="word", order_seed=1)
    with pytest.raises(ValueError, match="test_fraction") as fault:
        TextSource(str(documents), test_path="there", test_fraction=0.2, order_seed=1)
    assert str(fault.value) == "data.test_fraction=0.2: is not used with data.test_path"
    path = documents / "0.txt"
    path.write_text(json.dumps("x") + "\0")
    with pytest.raises(ValueError, match=rf"data\.path={path}: it is binary, not text"):
        source(documents, unit="document")
