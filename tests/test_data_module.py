"""Corpora as a source: splits, faults, oracle and card."""

import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import context_model

from newllm.data import encoded
from newllm.data.encoded import EncodedSplit
from newllm.data.source import Source
from newllm.data.sources.corpora import SPLITS, quality_grammar
from newllm.data.sources.sentences import SentenceSource
from newllm.data.sources.text import TextSource
from newllm.data.tokenizer import BOS, EOS, UNK, Tokenizer
from newllm.statistics.predictions import divergences

BuildData = Callable[..., Any]


@pytest.fixture
def build(tmp_path: Path) -> BuildData:
    """Builds and sets up a corpus, or a text without a name, that writes into an empty folder."""

    def build_data(corpus: str | None = None, **settings: Any) -> SentenceSource | TextSource:
        settings |= {"order_seed": 0, "directory": str(tmp_path)}
        data = SentenceSource(corpus, **settings) if corpus else TextSource(**settings)
        data.setup()
        return data

    return build_data


@pytest.fixture
def long_lines(tmp_path: Path) -> str:
    """A file whose line n holds n words."""
    path = tmp_path / "long.txt"
    path.write_text("".join(" ".join(["word"] * n) + "\n" for n in range(1, 31)))
    return str(path)


def test_setup_encodes_all_splits_once(build: BuildData, tmp_path: Path) -> None:
    data = build("quality500")
    assert [len(data.encoded(name)) for name in SPLITS] == [400, 100, 10_000]
    assert data.tokenizer.size == 256
    assert data.digest == data.corpus.sha256
    assert not list(tmp_path.iterdir())
    for name in ("train", "validation"):
        sentences = data.sentences(name)
        assert data.encoded(name)[7].tolist() == data.tokenizer.encode(sentences[7])
        assert data.encoded(name).num_targets == sum(len(s.split()) + 1 for s in sentences)
    tokenizer = data.tokenizer
    data.setup()
    assert data.tokenizer is tokenizer


def test_the_vocabulary_comes_from_train_alone(build: BuildData) -> None:
    data = build("tiny30")
    assert data.tokenizer.size == 91
    targets = data.encoded("validation").targets
    assert len(targets) == 35
    assert int((targets == UNK).sum()) == 16
    assert int((targets == EOS).sum()) == 6
    assert not (data.encoded("train").targets == UNK).any()


def test_a_smaller_vocabulary_leaves_unknowns(build: BuildData) -> None:
    data = build("quality500", vocabulary_size=50)
    assert data.tokenizer.size == 50
    assert (data.encoded("train").targets == UNK).any()


def test_byte_level_tokens(build: BuildData) -> None:
    data = build("tiny30", tokenizer="bpe", vocabulary_size=300)
    ids = data.encoded("validation")[0].tolist()
    assert data.tokenizer.decode(ids) == data.sentences("validation")[0]
    assert data.entropy_floor is None


def test_too_long_is_an_error_that_names_the_line(build: BuildData, long_lines: str) -> None:
    # 21 words and <BOS> take 22 positions.
    with pytest.raises(ValueError, match=r"data\.max_length=21 \(\d+ such in the train") as fault:
        build(path=long_lines, max_length=21)
    found = re.match(rf"{re.escape(long_lines)}:(\d+) takes (\d+) positions", str(fault.value))
    assert found
    line, positions = map(int, found.groups())
    assert line == positions - 1 > 20
    assert build(path=long_lines, max_length=31).num_too_long["train"] == 0


def test_too_long_names_the_line_of_a_record(build: BuildData, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    texts = ["one two", "", *["a short one\nand one more"] * 30, "four words\n and a fifth one"]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    with pytest.raises(ValueError, match="takes") as fault:
        build(path=str(path), max_length=4, seed=4)
    assert str(fault.value).startswith(f"{path}:33 takes 5 positions")


def test_too_long_names_the_line_of_a_written_corpus(build: BuildData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes") as fault:
        build("tiny30", max_length=6)
    build("tiny30").write()
    file, line = str(fault.value).split(" takes")[0].split(":")
    assert len((tmp_path / file).read_text().splitlines()[int(line) - 1].split()) == 6


def test_truncate_cuts_before_the_end(build: BuildData, long_lines: str) -> None:
    data = build(path=long_lines, max_length=10, too_long="truncate")
    assert sum(data.num_too_long.values()) == 21  # lines of 10 to 30 words
    for index, sentence in enumerate(data.sentences("train")):
        whole = data.tokenizer.encode(sentence)
        assert data.encoded("train")[index].tolist() == whole[:11]
    assert "truncated in train" in data.summary()


def test_drop_leaves_the_rest_and_counts(build: BuildData, long_lines: str) -> None:
    data = build(path=long_lines, max_length=20, too_long="drop")
    whole = data.corpus.train
    assert list(data.sentences("train")) == [s for s in whole if len(s.split()) < 20]
    assert len(data.encoded("train")) == len(whole) - data.num_too_long["train"] < len(whole)
    assert f"too long: {data.num_too_long['train']} dropped in train" in data.summary()
    with pytest.raises(ValueError, match="leaves no sentence in the train split"):
        build(path=long_lines, max_length=1, too_long="drop")


def test_the_oracle_is_the_mean_over_targets(build: BuildData) -> None:
    data = build("quality500")
    grammar = quality_grammar()
    log_probabilities = [
        log_probability
        for sentence in data.corpus.validation
        for log_probability in grammar.token_log_probabilities(sentence.split())
    ]
    assert len(log_probabilities) == data.encoded("validation").num_targets
    expected = -sum(log_probabilities) / len(log_probabilities)
    assert data.oracle_loss("validation") == pytest.approx(expected)
    assert data.entropy_floor == grammar.entropy_per_token()
    assert data.oracle_loss("test") == pytest.approx(data.entropy_floor, abs=0.01)


def test_the_oracle_follows_what_was_kept(build: BuildData) -> None:
    dropped = build("quality500", max_length=12, too_long="drop")
    kept = [s for s in dropped.corpus.validation if len(s.split()) < 12]
    total = sum(quality_grammar().log_probability(s.split()) for s in kept)
    num_targets = sum(len(s.split()) + 1 for s in kept)
    assert dropped.oracle_loss("validation") == pytest.approx(-total / num_targets)
    assert build("quality500", max_length=12, too_long="truncate").oracle_loss("test") is None


@pytest.mark.parametrize("vocabulary_size", [None, 50])
def test_rows_that_are_parts_of_sentences_have_no_oracle(
    build: BuildData, vocabulary_size: int | None
) -> None:
    def chunks(max_length: int) -> Any:
        sizes = {"max_length": max_length, "vocabulary_size": vocabulary_size}
        return build("quality500", too_long="chunk", **sizes)

    cut, whole = chunks(12), chunks(99)
    assert not cut.encoded("validation").rows_are_sequences
    assert cut.oracle_loss("validation") is None
    assert cut.reference_losses("validation") == {}
    assert cut.entropy_floor is None
    model = context_model(cut.vocabulary_size).eval()
    assert divergences(model, cut) is None
    assert whole.oracle_loss("validation") is not None
    assert divergences(model, whole) is not None


def test_without_a_grammar_there_is_no_oracle(build: BuildData) -> None:
    data = build("tiny30")
    assert data.oracle_loss("validation") is None
    assert data.entropy_floor is None


def test_bytes_are_counted_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bytes(Source):
        tokenizer = Tokenizer.train([], "bytes")

        def encoded(self, split: str) -> EncodedSplit:
            return whole

    rng = np.random.default_rng(1)
    ids_S = rng.integers(0, Bytes.tokenizer.size, 300_000)
    whole = EncodedSplit(ids_S, np.array([100_000, 2, 199_998]))
    monkeypatch.setattr(encoded, "BLOCK", 1000)
    bytes_V = Bytes.tokenizer.bytes_V
    assert bytes_V is not None
    expected = int(bytes_V[whole.targets].sum())
    del whole._is_target_S  # is computed again
    tracemalloc.start()
    assert Bytes().num_bytes("train") == expected
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(ids_S)


def test_help_needs_no_torch() -> None:
    code = "import sys, newllm.data.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lower_case_reaches_the_prompt(build: BuildData, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The Cat\n" * 10)
    folded, exact = (build(path=str(path), lowercase=flag) for flag in (True, False))
    assert UNK not in folded.tokenizer.encode_prompt("THE cat")
    assert exact.tokenizer.encode_prompt("THE cat") == [BOS, UNK, UNK]


def test_the_card_counts(build: BuildData, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a b\n\na b\n\nc c c\na b\n")
    data = build(path=str(path), validation_fraction=0.25, test_fraction=0.25)
    assert data.num_sentences == {"train": 2, "validation": 1, "test": 1}
    seen = [*data.corpus.train, *data.corpus.validation]
    assert data.counts.num_words == sum(len(s.split()) for s in seen)
    assert data.counts.num_unique_words == len({word for s in seen for word in s.split()})
    assert data.counts.overlap == int(data.corpus.validation[0] in data.corpus.train)
    assert "2 blank lines" in data.summary()
    assert "\n" not in data.summary()


def test_the_card_of_tiny30_shows_its_unknowns(build: BuildData) -> None:
    rows = build("tiny30").card()
    assert rows["<UNK> in validation"] == "16 of 35 targets (45.7%)"
    assert "entropy" not in rows


def test_the_command_prints_a_card_a_corpus(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "newllm.data", "--directory", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0
    assert all(line.endswith(" ...") for line in run.stderr.splitlines())
    for shown in (
        "tiny30",
        "stdlib_docs",
        "stdlib_source",
        "augmented124",
        "quality12500",
        "4,986",
        "1.5084 per token",
    ):
        assert shown in run.stdout
    assert (tmp_path / "quality12500.test.txt").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpus": "tiny31"}, "data.corpus=tiny31: no such option; options: "),
        ({"batching": "sorted"}, "data.batching=sorted: no such option; options: "),
        ({"too_long": "wrap"}, "data.too_long=wrap: no such option; options: "),
        ({"batch_size": 0}, "data.batch_size=0: must be at least 1"),
        ({"max_length": 0}, "data.max_length=0: must be at least 1"),
        ({"seed": -1}, "data.seed=-1: must be at least 0"),
        ({"order_seed": -1}, "seed=-1: must be at least 0"),
        ({"tokenizer": "bpe"}, "data.tokenizer=bpe: needs data.vocabulary_size"),
        ({"tokenizer": "chars"}, "data.tokenizer=chars: no such option"),
    ],
)
def test_faulty_settings_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    defaults: dict[str, Any] = {"corpus": "tiny30", "order_seed": 0}
    with pytest.raises(ValueError, match=re.escape(message)) as fault:
        SentenceSource(**(defaults | settings))
    assert "\n" not in str(fault.value)


def test_fewer_training_sentences_are_the_first(build: BuildData) -> None:
    whole, part = build("quality500"), build("quality500", train_sentences=50)
    assert part.sentences("train") == whole.sentences("train")[:50]
    assert part.sentences("validation") == whole.sentences("validation")
    assert part.tokenizer.size == whole.tokenizer.size
    assert part.corpus.test_shift == whole.corpus.test_shift
    assert part.oracle_loss("validation") == whole.oracle_loss("validation")
    assert part.digest != whole.digest
    with pytest.raises(ValueError, match="train_sentences=500: quality500 has 400"):
        build("quality500", train_sentences=500)
    with pytest.raises(ValueError, match="train_sentences=0: must be at least 1"):
        build("quality500", train_sentences=0)
