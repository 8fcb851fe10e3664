"""Batches: what they hold, their order, and resuming under a real Trainer."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_sentences import encoded
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from newllm.data.batch import IGNORE, Batch
from newllm.data.batching import (
    MAX_LOGITS,
    EvaluationBatches,
    TrainingBatches,
)
from newllm.data.encoded import EncodedSplit
from newllm.data.module import TrainingLoader
from newllm.data.tokenizer import BOS, EOS, PAD

LENGTHS = [3, 1, 7, 2, 2, 5, 1, 4, 6, 3, 9, 2, 8]
SENTENCES = [[BOS, *range(10, 10 + n), EOS] for n in LENGTHS]


def training_batches(batching: str = "shuffled", seed: int = 0) -> TrainingBatches:
    return TrainingBatches(encoded(SENTENCES), batch_size=4, batching=batching, seed=seed)


def training_loader(batching: str = "shuffled", seed: int = 0) -> TrainingLoader:
    return TrainingLoader(training_batches(batching, seed))


def order(batches: Iterable[Batch]) -> list[list[int]]:
    return [batch.row_B.tolist() for batch in batches]


def test_a_split_keeps_its_sentences() -> None:
    split = encoded(SENTENCES)
    assert len(split) == 13
    assert [split[i].tolist() for i in range(13)] == SENTENCES
    assert split.num_targets == sum(LENGTHS) + 13
    assert split.targets.tolist() == [token for ids in SENTENCES for token in ids[1:]]


def test_an_empty_split() -> None:
    split = encoded([])
    assert (len(split), split.num_targets, len(split.targets)) == (0, 0, 0)
    assert len(EvaluationBatches(split)) == 0
    assert list(EvaluationBatches(split)) == []


def test_a_batch_is_shifted_and_padded_to_its_longest() -> None:
    batch = encoded(SENTENCES).batch(torch.tensor([3, 12, 1]))
    assert batch.tokens_BT.shape == batch.targets_BT.shape == (3, 9)
    assert batch.tokens_BT.dtype == batch.targets_BT.dtype == torch.int64
    for row, index in enumerate([3, 12, 1]):
        ids, padding = SENTENCES[index], [PAD] * (8 - LENGTHS[index])
        assert batch.tokens_BT[row].tolist() == ids[:-1] + padding
        assert batch.targets_BT[row].tolist() == ids[1:] + [IGNORE] * len(padding)
    assert batch.row_B.tolist() == [3, 12, 1]


@pytest.mark.parametrize("batching", ["shuffled", "bucketed"])
def test_an_epoch_holds_every_sentence_once(batching: str) -> None:
    split = training_batches(batching)
    batches = order(split)
    assert len(batches) == len(split) == 4
    assert sorted(map(len, batches)) == [1, 4, 4, 4]
    assert sorted(chain(*batches)) == list(range(13))


@pytest.mark.parametrize("batching", ["shuffled", "bucketed"])
def test_the_order_depends_on_seed_and_epoch_alone(batching: str) -> None:
    first, second = training_loader(batching), training_loader(batching)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    epoch_0 = order(first)
    assert torch.equal(torch.get_rng_state(), state)
    assert order(first) == epoch_0
    second.set_epoch(1)
    epoch_1 = order(second)
    assert epoch_1 != epoch_0
    first.set_epoch(1)
    assert order(first) == epoch_1
    assert order(training_loader(batching, seed=1)) != epoch_0


def test_buckets_hold_like_lengths_and_are_shuffled() -> None:
    loader = training_loader("bucketed")
    contents: set[frozenset[int]] = set()
    positions: set[int] = set()
    for epoch in range(20):
        loader.set_epoch(epoch)
        batches = order(loader)
        lengths = [sorted(LENGTHS[i] for i in batch) for batch in batches]
        assert sorted(lengths) == [[1], [1, 2, 2, 2], [3, 3, 4, 5], [6, 7, 8, 9]]
        positions.add(lengths.index([1]))
        contents.update(frozenset(batch) for batch in batches)
    assert positions == {0, 1, 2, 3}
    assert len(contents) > 4  # which of the sentences of two words come first is drawn


def test_evaluation_is_ordered_by_length_and_complete() -> None:
    batches = order(EvaluationBatches(encoded(SENTENCES), batch_size=5))
    indices = list(chain(*batches))
    assert [len(batch) for batch in batches] == [5, 5, 3]
    assert sorted(indices) == list(range(13))
    assert [LENGTHS[i] for i in indices] == sorted(LENGTHS)


def test_an_evaluation_batch_is_bounded_by_its_positions() -> None:
    split = encoded(SENTENCES)
    for limit in (1, 9, 12, 40):
        batches = list(EvaluationBatches(split, max_positions=limit))
        assert sorted(i for batch in batches for i in batch.row_B.tolist()) == list(range(13))
        assert all(b.tokens_BT.numel() <= limit or len(b.tokens_BT) == 1 for b in batches)
        assert len(EvaluationBatches(split, max_positions=limit)) == len(batches)


def test_a_long_sentence_or_many_ids_make_small_batches() -> None:
    long = encoded([[BOS, *[5] * 100_000, EOS], *SENTENCES])
    assert [len(batch.tokens_BT) for batch in EvaluationBatches(long)] == [13, 1]
    many = encoded([[BOS, MAX_LOGITS // 20, EOS]] * 40)
    assert {len(batch.tokens_BT) for batch in EvaluationBatches(many)} == {9, 4}


def test_targets_are_found_again_in_their_split() -> None:
    split = encoded(SENTENCES)
    batch = split.batch(torch.tensor([3, 12, 1]))
    found = split.targets[split.target_indices(batch)]
    assert found.tolist() == batch.targets_BT[batch.scored_BT].tolist()


def test_previous_tokens_reach_back_to_the_start() -> None:
    split = encoded([[BOS, 4, 5, EOS], [BOS, 6, EOS]])
    assert split.previous(0).tolist() == split.targets.tolist() == [4, 5, EOS, 6, EOS]
    assert split.previous(1).tolist() == [BOS, 4, 5, BOS, 6]
    assert split.previous(2).tolist() == [BOS, BOS, 4, BOS, BOS]


def test_flat_sentences_make_the_same_split() -> None:
    split, lengths = encoded(SENTENCES), [len(ids) for ids in SENTENCES]
    flat = EncodedSplit(np.array([*chain(*SENTENCES)], np.uint16), np.array(lengths))
    assert [flat[i].tolist() for i in range(13)] == SENTENCES
    assert flat.targets.equal(split.targets)


def test_a_pass_resumes_where_it_was_broken_off() -> None:
    loader = training_loader()
    loader.set_epoch(3)
    whole = order(loader)
    iterator = iter(loader)
    next(iterator), next(iterator)
    resumed = training_loader()
    resumed.load_state_dict(loader.state_dict())  # the second one is at hand, not used
    resumed.set_epoch(3)
    assert len(resumed) == 4
    assert order(resumed) == whole[1:]
    assert order(resumed) == whole


def test_a_state_says_nothing_about_another_epoch() -> None:
    loader = training_loader()
    loader.load_state_dict({"epoch": 3, "num_used": 2})
    loader.set_epoch(4)
    assert len(order(loader)) == 4


class Recorder(LightningModule):
    """Notes every training batch; saves a checkpoint in the chosen hook and step and stops."""

    def __init__(self, hook: str = "", step: int = 0, checkpoint: Path = Path()) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.stop_in, self.checkpoint = (hook, step), checkpoint
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch.row_B.tolist()))
        return self.weight.sum()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.maybe_stop("on_train_batch_start")

    def on_validation_end(self) -> None:
        self.maybe_stop("on_validation_end")

    def on_train_epoch_end(self) -> None:
        self.maybe_stop("on_train_epoch_end")

    def maybe_stop(self, hook: str) -> None:
        if (hook, self.global_step) == self.stop_in:
            self.trainer.save_checkpoint(self.checkpoint)
            raise InterruptedError

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.tokens_BT.shape == batch.targets_BT.shape

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Recorder, checkpoint: Path | None = None) -> None:
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        module,
        training_loader(),
        EvaluationBatches(encoded(SENTENCES)),
        ckpt_path=checkpoint,
        weights_only=True,
    )


def test_a_trainer_walks_through_the_epochs() -> None:
    module, split = Recorder(), training_batches()
    fit(module)
    expected = [
        (epoch, split.batch(epoch, number).row_B.tolist())
        for epoch in range(3)
        for number in range(4)
    ]
    assert module.seen == expected


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        *(("on_train_batch_start", step) for step in (1, 2, 4, 5, 8)),
        *(("on_validation_end", step) for step in (4, 8)),
        *(("on_train_epoch_end", step) for step in (4, 8)),
    ],
)
def test_a_trainer_resumes_with_the_next_batch(hook: str, step: int, tmp_path: Path) -> None:
    whole, broken, resumed = Recorder(), Recorder(hook, step, tmp_path / "last.ckpt"), Recorder()
    fit(whole)
    with pytest.raises(InterruptedError):
        fit(broken)
    fit(resumed, broken.checkpoint)
    assert len(broken.seen) == step
    assert broken.seen + resumed.seen == whole.seen
