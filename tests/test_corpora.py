"""The corpora against their published figures, and text files against what is in them."""

import math
import random
import tomllib
from collections import Counter
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev

import pytest

from newllm.data.encoded import EncodedSplit
from newllm.data.sources.corpora import Corpus, build_corpus, quality_grammar
from newllm.data.sources.grammar import Grammar
from newllm.data.sources.text import TextSource, read_text_corpus
from newllm.data.tokenizer import Tokenizer
from newllm.statistics.ngram import NGram

# Python's `random` promises the same numbers everywhere; these digests hold it to that.
DIGESTS = {
    "tiny30": "5770a421e8f7e67b",
    "augmented124": "4e77c8b587f13833",
    "quality500": "f0c404313241fe82",
    "quality12500": "4085945f643c256b",
}


build_anew = build_corpus.__wrapped__  # past the cache


def words(sentences: tuple[str, ...]) -> list[str]:
    return [word for sentence in sentences for word in sentence.split()]


@pytest.mark.parametrize("name", DIGESTS)
def test_is_the_same_everywhere(name: str) -> None:
    assert build_corpus(name).sha256.startswith(DIGESTS[name])
    assert build_anew(name) is not build_corpus(name)
    assert build_anew(name).sha256 == build_corpus(name).sha256


@pytest.mark.parametrize("name", DIGESTS)
def test_words_are_lower_case_and_bare(name: str) -> None:
    sentences = build_corpus(name).train + build_corpus(name).validation
    assert all(word.isalpha() and word.islower() for word in words(sentences))
    assert all(sentence == " ".join(sentence.split()) for sentence in sentences)


def test_tiny30_has_the_published_figures() -> None:
    tiny = build_corpus("tiny30")
    known = set(words(tiny.train))
    assert (len(tiny.train), len(tiny.validation), len(tiny.test)) == (24, 6, 0)
    assert len(words(tiny.train + tiny.validation)) == 137
    assert len(set(words(tiny.train + tiny.validation))) == 103
    assert len(known) + 4 == 91
    assert len(words(tiny.validation)) + len(tiny.validation) == 35
    unknown = [word for word in words(tiny.validation) if word not in known]
    assert len(unknown) == len(set(unknown)) == 16
    assert {len(s.split()) for s in tiny.train + tiny.validation} == {3, 4, 5, 6}


def test_augmented124_extends_tiny30() -> None:
    tiny, augmented = build_corpus("tiny30"), build_corpus("augmented124")
    sentences = augmented.train + augmented.validation
    assert (len(augmented.train), len(augmented.validation)) == (99, 25)
    assert len(set(words(augmented.train))) + 4 == 115
    assert len(set(sentences)) == 124
    assert set(tiny.train + tiny.validation) < set(sentences)


def test_quality500_has_the_published_figures() -> None:
    quality = build_corpus("quality500")
    sentences = quality.train + quality.validation
    assert (len(quality.train), len(quality.validation)) == (400, 100)
    assert len(words(sentences)) == 4986
    assert len(set(words(sentences))) == 252
    assert min(len(s.split()) for s in sentences) == 6


def test_the_slots_have_the_published_sizes() -> None:
    rules = tomllib.loads(files("newllm.data.sources").joinpath("quality.toml").read_text())
    sizes = {"subject": 30, "present": 33, "past": 33, "object": 22, "location": 16}
    sizes |= {"time": 20, "conjunction": 9, "clause": 10, "connector": 5}
    assert {slot: len(set(rules[slot])) for slot in sizes} == sizes
    assert not set(rules["present"]) & set(rules["past"])
    assert {len(subject.split()) for subject in rules["subject"]} <= {2, 3}
    assert {len(thing.split()) for thing in rules["object"]} == {2}


@pytest.mark.parametrize(("name", "scale"), [("quality500", 1), ("quality12500", 25)])
def test_sentence_types_come_in_exact_proportions(name: str, scale: int) -> None:
    rules = tomllib.loads(files("newllm.data.sources").joinpath("quality.toml").read_text())
    quotas = {"simple": 80, "time_marked": 100, "location_marked": 100}
    quotas |= {"complex": 120, "compound": 60, "complete": 40}
    types = {kind: Grammar(rules, kind) for kind in quotas}
    counts = Counter(
        kind
        for sentence in build_corpus(name).train + build_corpus(name).validation
        for kind, grammar in types.items()
        if math.isfinite(grammar.log_probability(sentence.split()))
    )
    assert counts == {kind: scale * quota for kind, quota in quotas.items()}


def test_quality12500_is_split_four_to_one() -> None:
    quality = build_corpus("quality12500")
    assert (len(quality.train), len(quality.validation)) == (10_000, 2_500)


def test_the_entropy_is_near_the_original() -> None:
    assert quality_grammar().entropy_per_token() == pytest.approx(1.506, abs=0.01)
    assert quality_grammar().entropy() == pytest.approx(16.45, abs=0.2)


@pytest.mark.parametrize(("order", "original"), [(1, 4.97), (2, 2.34)])
def test_word_frequencies_are_like_the_original(order: int, original: float) -> None:
    quality = build_corpus("quality500")
    tokenizer = Tokenizer.train(quality.train)
    train, validation = (
        EncodedSplit(*tokenizer.encode_all(sentences))
        for sentences in (quality.train, quality.validation)
    )
    losses = NGram(train, order, tokenizer.size).log_probabilities(validation)[-1]
    assert -losses.mean() == pytest.approx(original, abs=0.03)


@pytest.mark.parametrize("name", ["quality500", "quality12500"])
def test_test_sentences_are_fresh_and_follow_the_grammar(name: str) -> None:
    quality = build_corpus(name)
    assert len(quality.test) == 10_000
    assert not set(quality.test) & {*quality.train, *quality.validation}
    grammar = quality_grammar()
    log_probabilities = [grammar.log_probability(s.split()) for s in quality.test]
    standard_error = stdev(log_probabilities) / math.sqrt(10_000)
    assert -mean(log_probabilities) == pytest.approx(grammar.entropy(), abs=4 * standard_error)


def test_the_test_shift_makes_unseen_sentences_sum_to_one() -> None:
    grammar = Grammar({"sentence": {"a": 5, "b": 3, "c": 1, "d": 1}}, "sentence")
    small = Corpus("small", train=("a", "a"), validation=("a", "c"), grammar=grammar)
    unseen = [math.exp(grammar.log_probability([word]) + small.test_shift) for word in "bd"]
    assert sum(unseen) == pytest.approx(1.0)
    assert build_corpus("tiny30").test_shift == 0.0


def test_a_seed_redraws_corpus_and_split() -> None:
    default, redrawn = build_corpus("quality500"), build_corpus("quality500", seed=7)
    assert len(redrawn.train) == 400
    assert not set(default.train) & set(redrawn.train)
    assert redrawn.sha256 == build_anew("quality500", seed=7).sha256
    assert redrawn.sha256 != build_corpus("quality500", seed=0).sha256
    tiny = build_corpus("tiny30", seed=7)
    assert set(tiny.validation) != set(build_corpus("tiny30").validation)
    assert {*tiny.train, *tiny.validation} == {
        *build_corpus("tiny30").train,
        *build_corpus("tiny30").validation,
    }


def test_write_leaves_a_file_a_split(tmp_path: Path) -> None:
    tiny, directory = build_corpus("tiny30"), tmp_path / "new" / "data"
    tiny.write(directory)
    assert {path.name for path in directory.iterdir()} == {
        "tiny30.train.txt",
        "tiny30.validation.txt",
        "tiny30.test.txt",
    }
    train = directory / "tiny30.train.txt"
    assert train.read_bytes() == "".join(f"{s}\n" for s in tiny.train).encode()
    assert (directory / "tiny30.test.txt").read_bytes() == b""


def test_write_repairs_what_differs_and_leaves_the_rest(tmp_path: Path) -> None:
    tiny = build_corpus("tiny30")
    tiny.write(tmp_path)
    train, validation = tmp_path / "tiny30.train.txt", tmp_path / "tiny30.validation.txt"
    written = validation.stat().st_mtime_ns
    content = train.read_text()
    train.write_text("spoiled\n")
    tiny.write(tmp_path)
    assert train.read_text() == content
    assert validation.stat().st_mtime_ns == written


def test_write_keeps_seeds_apart(tmp_path: Path) -> None:
    build_corpus("tiny30", seed=7).write(tmp_path)
    assert (tmp_path / "tiny30.seed7.train.txt").exists()


def test_write_names_the_directory_it_cannot_write_to(tmp_path: Path) -> None:
    occupied = tmp_path / "data"
    occupied.write_text("a file")
    with pytest.raises(ValueError, match=r"data\.directory=.*data: cannot be written"):
        build_corpus("tiny30").write(occupied)


def test_text_is_split_and_cleaned(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    lines = [f"Line  {i}\tof Text" if i % 5 else "  " for i in range(50)]
    path.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    text = read_text_corpus({"path": path})
    assert (len(text.train), len(text.validation), len(text.test)) == (32, 4, 4)
    assert text.num_blank_lines == 10
    kept = {f"line {i} of text" for i in range(50) if i % 5}
    assert {*text.train, *text.validation, *text.test} == kept
    for split in ("train", "validation", "test"):
        for index, sentence in enumerate(text.split(split)):
            number = int(sentence.split()[1]) + 1
            assert text.location(split, index) == f"{path}:{number}"


def test_text_options(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"Line {i}\n" for i in range(20)))
    fractions = {"validation_fraction": 0.25, "test_fraction": 0.0}
    text = read_text_corpus({"path": path}, lowercase=False, **fractions)
    assert (len(text.train), len(text.validation), len(text.test)) == (15, 5, 0)
    assert text.train[0].startswith("Line ")
    published = list(read_text_corpus({"path": path}).train)
    assert list(read_text_corpus({"path": path}, seed=1).train) != published
    assert list(read_text_corpus({"path": path}, seed=42).train) == published


def test_three_lines_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\nthree")
    text = read_text_corpus({"path": path})
    assert (len(text.train), len(text.validation), len(text.test)) == (1, 1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (random.Random(0).randbytes(1000), "is not UTF-8 text"),
        ("œuvre\n".encode("latin-1", errors="replace") + b"\xe9t\xe9\n", "is not UTF-8 text"),
        (b"a b\0c\n" * 9, "it is binary, not text"),
        (b"one single line\n", r"holds too few sentences to be split \(1\)"),
        (b"one\ntwo\n", r"holds too few sentences to be split \(2\)"),
    ],
)
def test_faulty_text_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as fault:
        read_text_corpus({"path": path})
    assert str(fault.value).startswith(f"data.path={path}: ")
    assert "\n" not in str(fault.value)


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        read_text_corpus({"path": tmp_path / "nothing.txt"})
    with pytest.raises(ValueError, match="the folder holds no files"):
        read_text_corpus({"path": tmp_path})


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        (0.0, 0.1, "data.validation_fraction=0.0: must"),
        (1.0, 0.1, "data.validation_fraction=1.0: must"),
        (0.1, -0.1, "data.test_fraction=-0.1: must"),
        (0.1, math.nan, "data.test_fraction=nan: must"),
        (0.5, 0.5, "their sum must be below 1"),
    ],
)
def test_impossible_fractions_are_refused(
    validation: float, test: float, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a\n" * 20)
    with pytest.raises(ValueError, match=message):
        TextSource(str(path), validation_fraction=validation, test_fraction=test, order_seed=1)
