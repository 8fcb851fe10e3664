"""Documents: rows that lose no token, exact tokens, bits per byte, and the standard library."""

import lzma
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoded_sentences import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from library import small_library
from scipy import stats
from small_models import context_model

from newllm.data import tokenizer as tokenizer_module
from newllm.data.batching import EvaluationBatches
from newllm.data.encoded import EncodedSplit
from newllm.data.sources import standard_library
from newllm.data.sources.corpora import SPLITS
from newllm.data.sources.standard_library import LibrarySource
from newllm.data.tokenizer import BOS, EOS, PAD, Tokenizer
from newllm.statistics.compression import xz_nats
from newllm.statistics.intervals import ratio_interval
from newllm.statistics.ngram import NGram
from newllm.statistics.predictions import bits_per_byte, target_losses
from newllm.statistics.references import references_on
from newllm.training.metrics import split_metrics

DOCUMENTS = [[BOS, 4, 5, 6, 7, 8, EOS], [BOS, 9, EOS], [BOS, 4, 4, 4, EOS]]


def cut(documents: list[list[int]], max_positions: int) -> EncodedSplit:
    lengths = np.array([len(document) for document in documents])
    return EncodedSplit(np.concatenate([*map(np.array, documents)]), lengths, max_positions)


def test_rows_overlap_by_the_token_that_links_them() -> None:
    split = cut(DOCUMENTS, 4)
    assert [split[i].tolist() for i in range(len(split))] == [
        [BOS, 4, 5, 6, 7], [7, 8, EOS], [BOS, 9, EOS], [BOS, 4, 4, 4, EOS],
    ]  # fmt: skip
    assert split.sequence_N.tolist() == [0, 0, 1, 2]
    assert split.num_sequences == 3
    batch = split.batch(torch.tensor([1, 0]))
    assert batch.tokens_BT.tolist() == [[7, 8, PAD, PAD], [BOS, 4, 5, 6]]
    assert split.target_indices(batch).tolist() == [4, 5, 0, 1, 2, 3]
    # A row is read from a fresh state, so nothing before its first token is known.
    assert split.previous(2).tolist() == [BOS, BOS, 4, 5, BOS, 7, BOS, BOS, BOS, BOS, 4, 4]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.integers(4, 9), max_size=9), min_size=1, max_size=5), st.integers(1, 12)
)
def test_every_token_is_a_target_once(contents: list[list[int]], max_positions: int) -> None:
    documents = [[BOS, *content, EOS] for content in contents]
    split, whole = cut(documents, max_positions), encoded(documents)
    assert split.targets.tolist() == whole.targets.tolist()
    assert int(split.num_positions_N.max()) <= max_positions
    found = np.full(split.num_targets, -1)
    for batch in EvaluationBatches(split, batch_size=2):
        found[split.target_indices(batch)] = batch.targets_BT[batch.scored_BT]
    assert found.tolist() == whole.targets.tolist()
    for number in (1, split.num_targets // 2, split.num_targets):
        head = split.head(number)
        targets = head.num_targets
        assert head.targets.tolist() == whole.targets[:targets].tolist()
        assert [row.tolist() for row in head] == [split[i].tolist() for i in range(len(head))]
        assert targets <= number or len(head) == 1


def test_folds_keep_documents_together() -> None:
    """Rows of one document in several folds would make its own words look general."""
    documents = [[BOS, *[4 + i] * 6, EOS] for i in range(10)]
    by_document = NGram(cut(documents, 2), 1, 20)
    assert by_document.strengths == NGram(encoded(documents), 1, 20).strengths
    NGram(cut(documents[:1], 2), 2, 20)  # rows are the folds of a single document


TEXTS = [
    "def f(x):\n\treturn  x\r\n\n",
    "  two blanks before, and\tafter  ",
    "\N{GREEK SMALL LETTER ALPHA} \x1c\x85\u2003x 東京 \U0001f642 don't 12",
    "",
]


@pytest.mark.parametrize(("kind", "size"), [("bytes", None), ("bpe", 270), ("bpe", 300)])
def test_exact_tokens_restore_every_byte(
    kind: str, size: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = [*TEXTS, "\n".join(TEXTS) * 3]
    tokenizer = Tokenizer.train(texts, kind, size, lowercase=False, is_exact=True)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
    for text in texts:
        ids = np.array(tokenizer.encode(text))
        assert int(tokenizer.bytes_V[ids].sum()) == len(text.encode())
    expected = [i for text in texts for i in tokenizer.encode(text)]
    monkeypatch.setattr(tokenizer_module, "ENCODED_AT_ONCE", 7)
    assert tokenizer.encode_all(texts)[0].tolist() == expected
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    assert Tokenizer.load(tmp_path / "tokenizer.json").decode(expected) == "".join(texts)


def test_a_vocabulary_of_bytes_has_nothing_else() -> None:
    tokenizer = Tokenizer.train(["abc"], "bytes", lowercase=False)
    assert tokenizer.size == 260
    assert len(set(tokenizer.encode("a\x00é"))) == 2 + 4
    assert Tokenizer.train(["a b"], "bpe", 300).bytes_V is None  # it adds and removes blanks


def test_the_interval_of_a_ratio_is_that_of_a_bootstrap() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 4000, 300).astype(float)
    losses = sizes * rng.normal(2, 0.4, 300)
    value, half_width = ratio_interval(losses, sizes)
    assert value == pytest.approx(losses.sum() / sizes.sum())
    resampled = stats.bootstrap(
        (losses, sizes),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        method="basic",
        rng=rng,
    )
    low, high = resampled.confidence_interval
    assert half_width == pytest.approx((high - low) / 2, rel=0.06)
    assert ratio_interval(losses[:1], sizes[:1])[1] == math.inf


def test_the_compressor_uses_what_it_has_seen() -> None:
    rng = np.random.default_rng(1)
    known = ["".join(map(chr, rng.integers(32, 127, 4000))) for _ in range(3)]
    again, fresh = (xz_nats(known, [text]) / math.log(2) for text in (known[1], known[1][::-1]))
    assert again < 0.05 * fresh
    # Random characters cannot be compressed below log2(95) bits each, and xz comes close.
    assert fresh / 4000 == pytest.approx(math.log2(95), rel=0.05)
    alone = xz_nats([], known[:1]) / math.log(2)
    assert alone / 8 == pytest.approx(len(lzma.compress(known[0].encode())), abs=80)  # its header


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_library(tmp_path, monkeypatch)
    return tmp_path / "library"


def source(name: str = "stdlib_source", **settings: Any) -> LibrarySource:
    built = LibrarySource(name, order_seed=1, directory=None, **settings)
    built.setup()
    return built


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_bits_per_byte_is_the_loss_over_the_bytes_of_the_files(
    library: Path, tokenizer: str
) -> None:
    data = source(tokenizer=tokenizer, vocabulary_size=300, max_length=50)
    texts = data.texts("validation")
    num_bytes = sum(len(text.encode()) for text in texts)
    assert data.num_bytes("validation") == num_bytes
    assert max(data.encoded("validation").num_positions_N) == 50
    torch.manual_seed(0)
    model = context_model(data.vocabulary_size).eval()
    losses = target_losses(model, data.encoded("validation"))
    metrics = split_metrics(model, data.evaluation["validation"], data.tokenizer)
    assert metrics["bits_per_byte"] == pytest.approx(losses.sum() / math.log(2) / num_bytes)
    found = bits_per_byte(losses, data, "validation")
    assert found["value"] == pytest.approx(metrics["bits_per_byte"])
    assert found["num_sequences"] == len(texts) == 4
    references = references_on(data, "validation")
    assert references.bits_per_byte(metrics["loss"]) == pytest.approx(metrics["bits_per_byte"])
    compressed = xz_nats(data.texts("train"), texts) / math.log(2) / num_bytes
    assert references.in_bits_per_byte["xz"] == pytest.approx(compressed)
    # Three files alike teach what the fourth one is.
    assert compressed < references.in_bits_per_byte["unigram"]
    rows = data.card()
    assert rows["Python"] == platform.python_version()
    assert f"{num_bytes:,} validation" in rows["bytes"]


def test_documents_are_documentation_strings_or_files(library: Path) -> None:
    docs, files = source("stdlib_docs"), source()
    assert all(text.startswith(("Counts", "How many")) for text in docs.texts("train"))
    assert len(docs.texts("train")) == 8
    assert sorted(files.texts("train")) == sorted(
        file.read_text(encoding="utf-8")
        for file in library.rglob("*.py")
        if standard_library.split_of(file.relative_to(library).parts[0].split(".")[0]) == "train"
    )
    assert docs.digest != files.digest
    digests = {docs.digest}
    next(library.glob("*.py")).write_text('"""Another."""')
    (library / "test").mkdir()
    (library / "test" / "test_more.py").write_text("1 +")
    digests.add(source("stdlib_docs").digest)
    assert len(digests) == 2


def test_what_training_has_is_left_out_of_evaluation(library: Path) -> None:
    before = source("stdlib_docs").num_sentences
    names = {split: [] for split in SPLITS}
    for file in library.glob("*.py"):
        names[standard_library.split_of(file.stem)].append(file)
    names["test"][0].write_bytes(names["train"][0].read_bytes())
    after = source("stdlib_docs").num_sentences
    assert after == before | {"test": before["test"] - 2}


def test_the_library_of_this_python() -> None:
    """Every module is in one split, those of tests in none; twins are together."""
    names = [*standard_library.library_files()]
    assert {"ast.py", "json/decoder.py", "this.py"} <= {*names}
    assert not any(part in name.split("/") for name in names for part in ("test", "tests"))
    of_split = dict.fromkeys(SPLITS, 0)
    for name in names:
        of_split[standard_library.split_of(name.split("/")[0].removesuffix(".py"))] += 1
    shares = np.array([*of_split.values()]) / len(names)
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.08)
    assert standard_library.split_of("_pydecimal") == standard_library.split_of("decimal")


def test_another_version_of_python_is_a_fault() -> None:
    with pytest.raises(ValueError, match=r"data\.python=2\.7\.1: this is Python 3"):
        LibrarySource("stdlib_docs", order_seed=1, python="2.7.1")
