"""Accuracy and drift by position, of a model whose contexts and answers are known.

Shape suffixes: B rows of a batch, E width of the input, 1 and 2 of that size.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TINY_CONTEXT, Command
from small_models import context_model, rnn_model
from torch import Tensor

from newllm.data.tasks.automata import Parity, Regular
from newllm.data.tasks.copying import Copy
from newllm.data.tasks.task import FIRST_TOKEN
from newllm.models.cell import Cell
from newllm.models.language_model import LanguageModel
from newllm.models.layer import State
from newllm.models.recurrence.reference import Reference
from newllm.models.recurrent import Recurrent
from newllm.statistics.drift import by_tenths
from newllm.training.metrics import split_metrics

TRAINED, EVALUATED, WRONG_AFTER, RATE = 40, 100, 75, 0.1


class DriftingParity(Cell):
    """The context is the parity, 1 or -1, and a number that grows after `TRAINED` tokens.

    The output is the parity, and its opposite after `WRONG_AFTER` tokens. An embedding is 1 for a
    zero and -1 for a one.
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim, output_dim=1)

    def initial_state(self, batch_size: int) -> State:
        even_B2 = torch.tensor([[1.0, 0.0]]).repeat(batch_size, 1)
        return even_B2, torch.zeros(batch_size, 1, dtype=torch.long)

    def forward(
        self, inputs_BE: Tensor, state: State, masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        context_B2, num_tokens_B1 = state[0], state[1] + 1
        parity_B1 = context_B2[:, :1] * inputs_BE
        drift_B1 = RATE * (num_tokens_B1 - TRAINED).clamp(min=0)
        output_B1 = parity_B1 * torch.where(num_tokens_B1 <= WRONG_AFTER, 1, -1)
        return output_B1, (torch.cat((parity_B1, drift_B1), 1), num_tokens_B1), {}


def drifting_model() -> LanguageModel:
    model = LanguageModel(FIRST_TOKEN + 2, 1, [partial(Recurrent, cell=DriftingParity)]).eval()
    with torch.no_grad():
        model.embedding.weight[FIRST_TOKEN:] = torch.tensor([[1.0], [-1.0]])
        model.output.weight[FIRST_TOKEN:] = torch.tensor([[1.0], [-1.0]])
        model.output.bias[:FIRST_TOKEN] = -9
    return model


def parity(**settings: object) -> Parity:
    return Parity(**{"lengths": [1, TRAINED], "evaluation_rows": 32} | settings)


@pytest.mark.parametrize("scored", ["every", "last"])
def test_drift_is_seen_before_the_accuracy_falls(scored: str) -> None:
    found = by_tenths(drifting_model(), parity(evaluation_lengths=[EVALUATED], scored=scored))
    trained, longer = found["validation"], found[f"length_{EVALUATED}"]
    assert trained.drift == pytest.approx([0.0] * 10)
    # The centres are 2 apart; a tenth has the positions 10 i + 1 ... 10 i + 10.
    assert longer.drift == pytest.approx([0.0] * 4 + [RATE * (5.5 + 10 * i) / 2 for i in range(6)])
    assert (trained.num_positions, longer.num_positions) == (TRAINED, EVALUATED)
    if scored == "every":
        assert trained.accuracy == pytest.approx([1.0] * 10)
        assert longer.accuracy == pytest.approx([1.0] * 7 + [0.5, 0.0, 0.0])
    else:
        assert trained.accuracy == [None] * 9 + [1.0]
        assert longer.accuracy == [None] * 9 + [0.0]


def test_a_model_without_contexts_has_an_accuracy_alone() -> None:
    task = parity()
    model = rnn_model(task.vocabulary_size).eval()
    found = by_tenths(model, task)["validation"]
    assert found.drift is None
    expected = split_metrics(model, task.evaluation["validation"])["accuracy"]
    assert sum(map(float, found.accuracy)) / 10 == pytest.approx(expected)


def test_a_task_that_is_no_automaton_has_no_drift() -> None:
    task = Copy(lengths=[5, 5], evaluation_rows=32)
    model = context_model(task.vocabulary_size, recurrence=Reference()).eval()
    found = by_tenths(model, task)["validation"]
    assert found.drift is None
    assert found.accuracy[:5] == [None] * 5
    assert None not in found.accuracy[5:]


def test_states_that_validation_does_not_reach_are_left_out() -> None:
    chain = [[1], [2], [3], [3]]
    settings = {"transitions": chain, "evaluation_rows": 2, "evaluation_lengths": [4]}
    one = Regular(lengths=[1, 1], **settings)
    model = context_model(one.vocabulary_size, recurrence=Reference()).eval()
    assert by_tenths(model, one)["length_4"].drift == [None] * 10  # one centre, no distance
    two = by_tenths(model, Regular(lengths=[1, 2], **settings))["length_4"]
    assert two.drift is not None
    filled = [value is not None for value in two.drift]
    assert filled == [True, False, True, *[False] * 7]  # of positions 1 ... 4 the first two


def test_the_command(command: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = command("newllm.train", "data=parity", "recipe=task", "countermeasure=none",
                   "data.evaluation_lengths=[50]", "data.evaluation_rows=16", "trainer=smoke",
                   *TINY_CONTEXT, f"hydra.run.dir={run}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = command("newllm.evaluate", str(run))
    assert done.returncode == 0, done.stderr
    for words in ("accuracy in each tenth", "drift in each tenth"):
        assert words in done.stdout
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert found["tenths"].keys() == found["metrics"].keys() == {"validation", "test", "length_50"}
    assert len(found["tenths"]["length_50"]["drift"]) == 10
    assert (run / "evaluation" / "positions.png").stat().st_size > 10_000
