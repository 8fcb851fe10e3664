"""Datasets laid out as on the Hugging Face Hub, read from folders."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from conftest import TINY_CONTEXT, Command, Compose
from pyarrow import parquet

from newllm.data.sources.corpora import SPLITS
from newllm.data.sources.hub import HubSource
from newllm.runs.identity import config_hash

Columns = dict[str, list[Any]]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def write_parquet(file: Path, columns: Columns) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), file)


def write_lines(file: Path, columns: Columns) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(*columns.values(), strict=True)
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def source(folder: Path, **settings: Any) -> HubSource:
    built = HubSource(str(folder), **{"order_seed": 1, "directory": None} | settings)
    built.setup()
    return built


def wikitext(split: str, number: int) -> list[str]:
    """Records as in WikiText: lines with their ends, an empty one around each heading."""
    lines = []
    for n in range(number):
        lines += ["", f" = Title {n} of {split} = \n", "", f" Words of {split} number {n} . \n"]
        lines += ["", " = = Part = = \n", "", f" More @-@ words {n} . \n"]
    return lines


@pytest.fixture
def wiki(tmp_path: Path) -> Path:
    for split, number in zip(SPLITS, (9, 3, 2), strict=True):
        file = tmp_path / "wiki" / f"{split}-00000-of-00001.parquet"
        write_parquet(file, {"text": wikitext(split, number)})
    return tmp_path / "wiki"


def test_articles_of_wikitext(wiki: Path) -> None:
    data = source(wiki, unit="article")
    assert data.num_sentences == {"train": 9, "validation": 3, "test": 2}
    for split in SPLITS:  # nothing is lost or reordered
        assert "".join(data.corpus.split(split)) == "".join(wikitext(split, 9))[: sum(
            map(len, data.corpus.split(split))
        )]  # fmt: skip
        assert all(text.startswith(" = Title") for text in data.corpus.split(split))
    assert data.card()["articles"] == "9 train / 3 validation / 2 test"
    assert data.name == "wiki"


def test_lines_of_wikitext_and_records(wiki: Path) -> None:
    lines = source(wiki, unit="line", vocabulary_size=50)
    assert lines.unit == "sentences"
    assert lines.corpus.test[:2] == ["= title 0 of test =", "words of test number 0 ."]
    records = source(wiki)
    assert records.corpus.test[0] == " = Title 0 of test = \n"


@pytest.mark.parametrize("write", [write_parquet, write_lines])
def test_sentences_of_bookcorpus_are_split(
    tmp_path: Path, write: Callable[[Path, Columns], None]
) -> None:
    """BookCorpus has a training split alone, with a sentence in each record."""
    sentences = [f"the cat saw {n} dogs ." for n in range(40)]
    suffix = "parquet" if write is write_parquet else "jsonl"
    write(tmp_path / "books" / f"train.{suffix}", {"text": sentences})
    data = source(tmp_path / "books", unit="line")
    sizes = data.num_sentences
    assert sizes["train"] > 20
    assert min(sizes["validation"], sizes["test"]) > 0
    assert sorted(text for split in SPLITS for text in data.corpus.split(split)) == sorted(
        sentences
    )
    again = source(tmp_path / "books", unit="line", seed=3)
    assert again.corpus.train != data.corpus.train
    fewer = source(tmp_path / "books", unit="line", train_sentences=9, validation_sentences=1)
    assert fewer.corpus.train == data.corpus.train[:9]  # limits do not move the shares
    assert fewer.corpus.validation == data.corpus.validation[:1]


def test_pairs(tmp_path: Path) -> None:
    questions = [f"Ask {n}" for n in range(20)]
    columns = {"question": questions, "id": [*range(20)], "answer": ["Told"] * 20}
    write_lines(tmp_path / "faq" / "train.jsonl", columns)
    chosen = {"prompt_column": "question", "response_column": "answer", "unit": "pair"}
    data = source(tmp_path / "faq", **chosen)
    prompts = [prompt for split in SPLITS for prompt in data.corpus.prompts[split]]
    assert sorted(prompts) == sorted(questions)
    assert {*data.corpus.train} == {"Told"}
    with pytest.raises(
        ValueError,
        match=r"record 1 .* no column prompt; columns: question, id, ans",
    ):
        source(tmp_path / "faq", unit="pair")


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "many" / "train.jsonl", {"text": [f"text {n}" for n in range(900)]})
    read: list[int] = []
    field = HubSource._field

    def counted(self: HubSource, split: str, number: int, *place: Any) -> str:
        read.append(number)
        return field(self, split, number, *place)

    monkeypatch.setattr(HubSource, "_field", counted)
    limits = {"train_sentences": 80, "validation_sentences": 5, "test_sentences": 5}
    data = source(tmp_path / "many", unit="line", **limits)
    assert data.num_sentences == {"train": 80, "validation": 5, "test": 5}
    assert data.tokenizer.size == 4 + 1 + 80  # the words of what is kept
    assert 90 <= len(read) < 200


def test_files_named_after_other_splits(tmp_path: Path) -> None:
    for name in ("train", "validation_matched"):
        write_lines(tmp_path / "set" / f"{name}.jsonl", {"text": [f"{name} {n}" for n in range(8)]})
    readme = "configs:\n- config_name: default\n  data_files:\n" + "".join(
        f"  - split: {name}\n    path: {name}.jsonl\n" for name in ("train", "validation_matched")
    )
    (tmp_path / "set" / "README.md").write_text(f"---\n{readme}---\n")
    data = source(tmp_path / "set", validation_split="validation_matched", test_fraction=0.0)
    assert data.num_sentences == {"train": 8, "validation": 8, "test": 0}
    with pytest.raises(
        ValueError, match=r"^data\.test_split=dev: no such split; splits: train, validation_matched"
    ):
        source(tmp_path / "set", test_split="dev")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            {"validation_split": "test"},
            "data.validation_split=test: is the test split as well; choose another data.test_split",
        ),
        (
            {"validation_split": "train"},
            "data.validation_split=train: is the train split as well; choose another "
            "data.validation_split",
        ),
        (
            {"train_split": "test"},
            "data.train_split=test: is the test split as well; choose another data.test_split",
        ),
    ],
)
def test_no_two_splits_have_the_same_records(
    tmp_path: Path, chosen: dict[str, str], message: str
) -> None:
    for name in ("train", "test"):
        write_lines(tmp_path / "set" / f"{name}.jsonl", {"text": [f"{name} {n}" for n in range(9)]})
    with pytest.raises(ValueError) as fault:  # noqa: PT011 -- the message is compared
        source(tmp_path / "set", **chosen)
    assert str(fault.value) == f"{message}, or none for a share of the training split"
    data = source(tmp_path / "set", validation_split="test", test_split="none")
    assert data.corpus.validation == [f"test {n}" for n in range(9)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.parquet", "not parquet", "Parquet"),
        ("train.jsonl", '{"text": 3}\n', "record 1 of split train: its column text is not text"),
        ("train.jsonl", '{"text": null}\n', "record 1 of split train: its column text is null"),
        (
            "train.jsonl",
            '{"text": "a"}\n' * 2,
            "the share for test: it is empty: it needs",
        ),
        ("set.py", "print('ran')", "scripts are no longer supported"),
        (".hidden", "", "doesn't contain any data files"),
    ],
)
def test_faulty_datasets_are_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: str, message: str
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_text(content)
    with pytest.raises(ValueError, match=message) as fault:
        source(tmp_path / "set")
    assert str(fault.value).startswith(f"data.name={tmp_path / 'set'}: ")
    assert "\n" not in str(fault.value)
    assert "ran" not in capfd.readouterr().out


def test_lines_of_text_files_keep_their_ends(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for split in SPLITS:
        (tmp_path / "set" / f"{split}.txt").write_text("".join(wikitext(split, 3)) + "end\r\n")
    data = source(tmp_path / "set", unit="article")
    assert "".join(data.corpus.train) == "".join(wikitext("train", 3)) + "end\n"


def test_a_folder_may_not_read_outside_of_itself(tmp_path: Path) -> None:
    write_lines(tmp_path / "secret.jsonl", {"text": ["told"] * 30})
    (tmp_path / "set").mkdir()
    files = "configs:\n- config_name: default\n  data_files: ../secret.jsonl\n"
    (tmp_path / "set" / "README.md").write_text(f"---\n{files}---\n")
    with pytest.raises(ValueError, match=r"reads a file outside the folder: .*secret\.jsonl"):
        source(tmp_path / "set")


def test_a_share_for_a_split_of_the_dataset_is_refused(wiki: Path) -> None:
    with pytest.raises(ValueError, match="validation_fraction") as fault:
        source(wiki, validation_fraction=0.2)
    assert str(fault.value) == "data.validation_fraction=0.2: is not used with the split validation"


def test_own_splits_can_be_left_alone(wiki: Path) -> None:
    data = source(wiki, unit="article", validation_split="none", test_split="none",
                  validation_fraction=0.4, test_fraction=0.0)  # fmt: skip
    assert data.num_sentences["test"] == 0
    assert sum(data.num_sentences.values()) == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "csv"}, "data.name=csv: is neither a folder nor the name of a dataset"),
        ({"name": "x" * 5000}, "data.name=xxx"),
        ({"name": __file__}, f"data.name={__file__}: is a file; give its folder"),
        ({"name": ".", "revision": "main"}, "data.revision=main: is not used with a folder"),
        ({"name": "a/b", "prompt_column": "x"}, "data.prompt_column=x: is not used with data.unit"),
        ({"name": "a/b", "unit": "pair", "text_column": "x"}, "data.text_column=x: is not used"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as fault:
        HubSource(**settings, order_seed=1)
    assert "\n" not in str(fault.value)


def test_an_unknown_dataset_and_no_name() -> None:
    with pytest.raises(ValueError, match=r"^data\.name=nobody/nothing: .*nobody/nothing"):
        source("nobody/nothing")
    with pytest.raises(ValueError, match=r"^data=hub: needs data\.name=NAME"):
        HubSource(order_seed=1)


def test_tokens_are_read_again_from_the_cache(
    wiki: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"unit": "article", "directory": str(tmp_path / "data")}
    first = source(wiki, **settings)
    assert "reading train" in capsys.readouterr().err
    first.write()
    second = source(wiki, **settings)
    assert capsys.readouterr().err == ""
    assert second.encoded("train").targets.equal(first.encoded("train").targets)
    source(wiki, **settings, train_sentences=4)
    assert "reading train" in capsys.readouterr().err


def test_the_cache_notices_other_content(tmp_path: Path) -> None:
    """The hash of a folder with a README is that of its patterns alone."""
    folder, settings = tmp_path / "set", {"directory": str(tmp_path / "data"), "test_fraction": 0.0}
    for word in ("first", "other"):
        write_lines(folder / "a.jsonl", {"text": [f"{word} {n}" for n in range(30)]})
        files = "configs:\n- config_name: default\n  data_files: a.jsonl\n"
        (folder / "README.md").write_text(f"---\n{files}---\n")
        os.utime(folder / "a.jsonl", (0, 0))
        data = source(folder, **settings)
        data.write()
        assert word in data.tokenizer.decode(data.encoded("train")[0].tolist())


def test_the_content_of_a_folder_is_in_the_hash(
    wiki: Path, compose_config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["data=hub", f"data.name={wiki}", "data.unit=article"]
    before = config_hash(compose_config(*overrides))
    monkeypatch.chdir(wiki.parent)
    assert config_hash(compose_config("data=hub", "data.name=wiki", overrides[-1])) == before
    write_parquet(wiki / "test-00000-of-00001.parquet", {"text": wikitext("test", 4)})
    assert config_hash(compose_config(*overrides)) != before


def test_a_run_on_articles(wiki: Path, command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = command(
        "newllm.train", "data=hub", f"data.name={wiki.name}", "data.unit=article", *TINY_CONTEXT,
        "recipe=modern", "countermeasure=none", "trainer=smoke", f"hydra.run.dir={run}",
        folder=wiki.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "result.json").read_text())
    assert result["corpus"] == "wiki"
    assert "xz" in result["references_bits_per_byte"]
    done = command("newllm.evaluate", str(run))  # a stranger's run must not read from the Hub
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--trust newllm" in done.stderr
    done = command("newllm.evaluate", str(run), "--trust", "newllm")
    assert done.returncode == 0, done.stderr
