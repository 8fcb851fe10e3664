"""Streams: documents end to end, read window by window with the state carried over."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Compose
from encoded_sentences import encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from library import small_library
from small_models import context_model, hybrid, mingru_model, rnn_model, transformer
from test_documents import source

from newllm.config.build import ConfigFault
from newllm.data import streaming
from newllm.data.batch import IGNORE
from newllm.data.batching import EvaluationBatches
from newllm.data.encoded import EncodedSplit
from newllm.data.streaming import START_STATES, EvaluationStream, Stream, TrainingStream
from newllm.data.tokenizer import BOS, EOS, PAD
from newllm.models.language_model import LanguageModel
from newllm.models.torch_rnn import GRU, LSTM, Elman
from newllm.statistics.predictions import target_losses
from newllm.statistics.references import MOST_POSITIONS, NUM_BINS, _positions, references_on
from newllm.statistics.scoring import score_batches
from newllm.training.experiment import build_experiment

documents_of = st.lists(st.lists(st.integers(4, 9), max_size=9), min_size=1, max_size=6)


def rows_of(stream: Stream, epoch: int = 0) -> dict[int, list[tuple[int, int, bool]]]:
    """The tokens, targets and resets of each row, over all batches of an epoch."""
    rows: dict[int, list[tuple[int, int, bool]]] = {}
    for number in range(len(stream)):
        batch = stream.batch(epoch, number)
        for row, *fields in zip(
            range(len(batch.row_B)), batch.tokens_BT, batch.targets_BT, batch.reset_BT, strict=True
        ):
            found = zip(*(field.tolist() for field in fields), strict=True)
            rows.setdefault(row, []).extend(step for step in found if step[0] != PAD)
    return rows


@settings(deadline=None, max_examples=60)
@given(documents_of, st.integers(1, 12), st.integers(1, 5), st.integers(0, 2))
def test_a_row_reads_documents_end_to_end(
    contents: list[list[int]], num_steps: int, batch_size: int, epoch: int
) -> None:
    documents = [[BOS, *content, EOS] for content in contents]
    split = encoded(documents)
    for stream in (
        TrainingStream(split, batch_size, num_steps, 1, "kept"),
        EvaluationStream(split, num_steps, batch_size),
    ):
        rows = rows_of(stream, epoch)
        steps = [step for row in rows.values() for step in row]
        pairs = sorted((token, target) for token, target, _ in steps)
        assert pairs == sorted(pair for document in documents for pair in pairwise(document))
        assert len(rows) <= batch_size
        for row in rows.values():
            for (_, target, _), (token, _, is_reset) in pairwise(row):
                assert is_reset == (token == BOS) == (target == EOS)
                assert is_reset or token == target
            assert row[0][2]
        lengths = [len(row) for row in rows.values()]
        assert lengths == sorted(lengths, reverse=True)
        if isinstance(stream, TrainingStream):
            assert max(lengths) == -(-len(pairs) // batch_size)
        else:
            assert all(row[0][0] == BOS and row[-1][1] == EOS for row in rows.values())


def test_every_target_has_its_index() -> None:
    split = encoded([[BOS, 4, 5, 6, EOS], [BOS, EOS], [BOS, 7, 8, EOS]])
    stream = EvaluationStream(split, 2, 2)
    found = np.full(split.num_targets, -1)
    for number, batch in enumerate(stream):
        found[stream.target_indices(number)] = batch.targets_BT[batch.targets_BT != IGNORE]
    assert found.tolist() == split.targets.tolist()


def test_each_epoch_has_an_order_of_its_own() -> None:
    split = encoded([[BOS, 4 + number, EOS] for number in range(40)])
    stream, again = (TrainingStream(split, 4, 5, 1, "kept") for _ in range(2))
    first, second = rows_of(stream, 0), rows_of(stream, 1)
    assert first != second
    assert rows_of(stream, 0) == first == rows_of(again, 0)
    assert rows_of(TrainingStream(split, 4, 5, 2, "kept"), 0) != first


def test_where_a_window_starts_from() -> None:
    split = encoded([[BOS, *[4] * 30, EOS]] * 5)
    kept, zero, drawn = (TrainingStream(split, 5, 10, 1, state) for state in START_STATES)
    assert (
        kept.batch(0, 0).continues_B.tolist() == drawn.batch(0, 0).continues_B.tolist() == [0] * 5
    )
    assert kept.batch(0, 1).continues_B.tolist() == [0, 1, 2, 3, 4]
    assert zero.batch(0, 1).continues_B is None
    others = [drawn.batch(0, number).continues_B.tolist() for number in range(1, 4)]
    assert all(sorted(rows) == [0, 1, 2, 3, 4] for rows in others)
    assert all(row != other for rows in others for row, other in enumerate(rows))
    assert others[0] != others[1]
    assert drawn.batch(0, 1).continues_B.tolist() == others[0]
    assert all(
        torch.equal(kept.batch(0, 1).tokens_BT, other.batch(0, 1).tokens_BT)
        for other in (zero, drawn)
    )
    alone = TrainingStream(split, 1, 10, 1, "drawn")
    assert alone.batch(0, 1).continues_B.tolist() == [0]


def drawn_wide(model: LanguageModel) -> LanguageModel:
    """With weights so large that what was read long ago changes the losses."""
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2, generator=generator)
    return model


@pytest.mark.parametrize(
    "make",
    [
        context_model,
        hybrid,
        mingru_model,
        *(lambda size, layer=layer: rnn_model(size, layer) for layer in (LSTM, GRU, Elman)),
        lambda size: transformer(size, positions="rotary"),
    ],
)
def test_long_documents_are_scored_whole(make, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(1)
    lengths = (70, 3, 33, 34, 1, 50)
    split = encoded([[BOS, *rng.integers(4, 12, length), EOS] for length in lengths])
    model = drawn_wide(make(12)).eval()
    whole, changed = np.empty((2, split.num_targets))
    with torch.no_grad():
        for batch in EvaluationBatches(split, batch_size=2):
            loss_BT = model.score(batch.tokens_BT, batch.targets_BT)[0]
            whole[split.target_indices(batch)] = loss_BT[batch.scored_BT]
    for window in (1, 16, 32):
        monkeypatch.setattr(streaming, "EVALUATION_WINDOW", window)
        monkeypatch.setattr(streaming, "MAX_POSITIONS", 2 * window)  # documents follow others
        np.testing.assert_allclose(target_losses(model, split), whole, atol=1e-5)
    for name in ("continues_B", "reset_BT"):
        stream = EvaluationStream(split, 16, 2)
        batches = [batch._replace(**{name: None}) for batch in stream]
        for number, scored in enumerate(score_batches(model, batches)):
            found = scored.loss_BT[scored.batch.scored_BT].numpy()
            changed[stream.target_indices(number)] = found
        assert np.abs(changed - whole).max() > 1e-4, name


def test_rows_of_one_document_do_not_continue_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document that is cut into rows is read from the initial state in each of them."""
    document = np.array([BOS, *np.random.default_rng(1).integers(4, 12, 90), EOS])
    split = EncodedSplit(document, np.array([92]), max_positions=40)
    model = drawn_wide(transformer(12, max_length=40)).eval()
    expected = target_losses(model, split)
    monkeypatch.setattr(streaming, "EVALUATION_WINDOW", 16)
    np.testing.assert_allclose(target_losses(model, split), expected, atol=1e-5)


@pytest.mark.parametrize("state", START_STATES)
def test_the_last_row_may_end_before_the_others(state: str) -> None:
    """The first batch of an epoch then has more rows than the last one of the epoch before."""
    split = encoded([[BOS, *[4] * 20, EOS], [BOS, *[5] * 5, EOS]])
    stream = TrainingStream(split, 6, 2, 1, state)
    sizes = [len(batch.row_B) for batch in stream]
    assert sizes[-1] < sizes[0]
    model = context_model(12)
    batches = [stream.batch(epoch, number) for epoch in (0, 1) for number in range(len(stream))]
    assert len([*score_batches(model, batches)]) == 2 * len(stream)


STREAM = (
    *("data=stdlib_source", "data.tokenizer=bytes", "data.feed=stream", "data.tbptt_steps=20"),
    *("data.batch_size=2", "recipe=task", "countermeasure=none", "trainer.max_epochs=2"),
    *("logger=none", "callbacks=none", "model.embedding_dim=8", "data.directory=null"),
)


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_library(tmp_path, monkeypatch)


def test_a_stream_has_the_references_of_whole_documents() -> None:
    """Counts of n-grams look back across windows, and a bin of positions is one of documents."""
    stream = source(feed="stream", tbptt_steps=10, max_length=10)
    assert stream.texts("validation") == source().texts("validation")
    found, whole = (
        references_on(data, "validation") for data in (stream, source(max_length=10_000))
    )
    assert found.means == pytest.approx(whole.means)
    assert found.positions.tolist() == whole.positions.tolist()
    assert stream.num_bytes("validation") == source().num_bytes("validation")
    assert stream.evaluation["validation"].batch(0, 0).tokens_BT.shape[1] == 10


def test_positions_of_long_documents_are_binned() -> None:
    split = encoded([[BOS, *[4] * (4 * MOST_POSITIONS), EOS], [BOS, 5, EOS]])
    found = _positions(split)
    assert len(found["places"]) == found["positions"].max() <= NUM_BINS
    assert found["places"][0] == 1
    assert found["places"] == sorted(found["places"])
    numbers = np.bincount(found["positions"])[1:]
    length_N = split.num_positions_N.double()
    total = float(((1 + length_N) / 2) @ length_N)
    assert found["places"] @ numbers == pytest.approx(total)
    assert numbers[-1] > MOST_POSITIONS / NUM_BINS  # no bin of a single position at the end


@pytest.mark.parametrize(
    ("chosen", "fault"),
    [
        (("data.feed=lines",), r"data\.feed=lines: no such option; options: rows, stream"),
        (
            ("data.start_state=warm",),
            r"data\.start_state=warm: no such option; options: kept, zero, drawn",
        ),
        (("data.tbptt_steps=0",), r"data\.tbptt_steps=0: must be at least 1"),
        (
            ("data.too_long=truncate",),
            r"data\.too_long=truncate: a stream reads sequences of any length; remove it",
        ),
        (
            ("data.feed=rows", "data.tbptt_steps=5"),
            r"data\.tbptt_steps=5: is a setting of streams; set data\.feed=stream",
        ),
        (
            ("data=stdlib_summaries",),
            r"data\.feed=stream: pairs are read one by one; choose rows",
        ),
        (
            ("data.batching=bucketed",),
            r"data\.batching=bucketed: a stream reads documents in random order; remove it",
        ),
        (
            ("model=transformer_leaky", "model.positions=none"),
            r"a model that sees the future cannot; set data\.feed=rows",
        ),
        (
            ("model=transformer", "model.positions=learned", "data.start_state=zero"),
            r"model\.positions=learned: the rows of stdlib_source continue across batches",
        ),
    ],
)
def test_a_stream_that_cannot_be(
    compose_config: Compose, tmp_path: Path, chosen: tuple[str, ...], fault: str
) -> None:
    given = [choice for choice in STREAM if choice != "data.tokenizer=bytes"]
    with pytest.raises(ConfigFault, match=fault):
        build_experiment(compose_config(*given, *chosen), tmp_path)
