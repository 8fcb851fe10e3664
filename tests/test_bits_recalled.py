"""Bits recalled: exact for states that are known, and never more than a state can hold.

Shape suffixes: B rows of a batch, T time, M items of a row, V kinds of items.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.stats import entropy

from newllm.config.build import instantiate
from newllm.data.batch import Batch
from newllm.data.tasks.task import Task
from newllm.training.metrics import Scores, sum_rows

CONF = Path(__file__).parents[1] / "conf" / "data"
ITEMS = {"copy", "reverse", "selective_copy", "recall", "induction", "passkey"}


def task(name: str) -> Task:
    found: Task = instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), {"seed": 1}))
    return found


def recalled(loss_BT: torch.Tensor, correct_BT: torch.Tensor, batch: Batch, kinds: int) -> float:
    scores = Scores(["bits_recalled"], num_answers=kinds)
    scores.add(sum_rows(loss_BT, correct_BT, batch))
    return scores.metrics()["bits_recalled"]


def test_tasks_whose_answers_are_items_report_it() -> None:
    names = {path.stem for path in CONF.glob("*.yaml") if ".tasks." in path.read_text()}
    for name in names:
        for split in task(name).evaluation.values():
            assert ("bits_recalled" in split.metrics) == (name in ITEMS)
            Scores.of(split)


@pytest.mark.parametrize("name", sorted(ITEMS - {"induction"}))
def test_a_perfect_model_recalls_the_information(name: str) -> None:
    drawn = task(name)
    batch = drawn.batch((9,), 6, 20)
    nothing_BT = torch.zeros_like(batch.tokens_BT, dtype=torch.float64)
    found = recalled(nothing_BT, batch.scored_BT, batch, drawn.num_answers)
    assert found == pytest.approx(drawn.information(20))


@pytest.mark.parametrize("num_kept", [0, 1, 7, 20])
def test_kept_pairs_count_in_full_and_guesses_do_not_count(num_kept: int) -> None:
    drawn = task("recall")
    batch = drawn.batch((9,), 16, 20)
    is_kept_BT = batch.scored_BT & (batch.scored_BT.cumsum(1) <= num_kept)
    loss_BT = torch.where(is_kept_BT, 0.0, math.log(drawn.num_answers)).double()
    found = recalled(loss_BT * batch.scored_BT, is_kept_BT, batch, drawn.num_answers)
    # log2 of the 4,096 values; that no guess is right is known, too.
    assert found == pytest.approx(num_kept * 12, abs=0.01)


def scored(targets_BM: np.ndarray) -> Batch:
    targets_BT = torch.from_numpy(targets_BM) + 5
    return Batch(targets_BT, targets_BT, torch.arange(len(targets_BT)))


@pytest.mark.parametrize("accuracy", [0.0, 0.25, 0.6])
def test_confident_mistakes_count_by_accuracy(accuracy: float) -> None:
    """By the entropy of a prediction as likely to be right as it is."""
    kinds, num_answers = 4, 20
    batch = scored(np.zeros((num_answers, 1), dtype=int))
    correct_BT = torch.arange(num_answers)[:, None] < accuracy * num_answers
    loss_BT = torch.where(correct_BT, 0.0, 50.0).double()
    prediction_V = [accuracy, *[(1 - accuracy) / (kinds - 1)] * (kinds - 1)]
    expected = math.log2(kinds) - entropy(prediction_V, base=2)
    assert recalled(loss_BT, correct_BT, batch, kinds) == pytest.approx(expected, abs=1e-9)


def predicted_from(state_B: np.ndarray, items_BM: np.ndarray, kinds: int) -> float:
    """Bits recalled by the best prediction of each item from a state, over all rows at once."""
    loss_BM, correct_BM = np.empty(items_BM.shape), np.empty(items_BM.shape, dtype=bool)
    for state in np.unique(state_B):
        is_row_B = state_B == state
        for m, items_B in enumerate(items_BM[is_row_B].T):
            likelihood_V = np.bincount(items_B, minlength=kinds) / len(items_B)
            loss_BM[is_row_B, m] = -np.log(likelihood_V[items_B])
            correct_BM[is_row_B, m] = items_B == likelihood_V.argmax()
    batch = scored(items_BM)
    return recalled(torch.from_numpy(loss_BM), torch.from_numpy(correct_BM), batch, kinds)


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 5])
@pytest.mark.parametrize(("num_items", "kinds"), [(6, 2), (3, 4), (4, 3)])
def test_no_state_recalls_more_than_its_bits(num_items: int, kinds: int, bits: int) -> None:
    items_BM = np.array(list(itertools.product(range(kinds), repeat=num_items)))
    for seed in range(20):
        state_B = np.random.default_rng(seed).integers(2**bits, size=len(items_BM))
        # A partition into unequal parts holds less than its bits.
        held = entropy(np.bincount(state_B), base=2)
        assert predicted_from(state_B, items_BM, kinds) <= held + 1e-9 <= bits + 2e-9


@pytest.mark.parametrize("bits", [0, 1, 4, 6])
def test_a_state_that_is_the_first_items_recalls_all_its_bits(bits: int) -> None:
    items_BM = np.array(list(itertools.product(range(2), repeat=6)))
    state_B = items_BM[:, :bits] @ (2 ** np.arange(bits))
    assert predicted_from(state_B, items_BM, 2) == pytest.approx(bits)


def test_without_the_kinds_of_targets_there_is_none() -> None:
    with pytest.raises(ValueError, match="metrics: bits_recalled needs num_answers"):
        Scores(["bits_recalled"])
