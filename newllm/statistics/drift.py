"""A model along the rows of a task: its accuracy by position, and the drift of its contexts.

Shapes: B rows of a batch, T time, N positions of a split, C context, S states, D tenths of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from newllm.data.batch import Batch, on_device_of
from newllm.data.source import VALIDATION, Split
from newllm.data.tasks.automata import Automaton
from newllm.data.tasks.task import FIRST_TOKEN, Task
from newllm.models.language_model import LanguageModel, score_logits

NUM_TENTHS = 10


@dataclass(frozen=True)
class Tenths:
    """Means over each tenth of the rows of a split; None for a tenth with nothing to average.

    Attributes:
        num_positions: of a row.
        accuracy: the share of right answers.
        drift: the mean of `StateCentres.distances`; None for a model without contexts, and for a
            task that is no automaton.
    """

    num_positions: int
    accuracy: Sequence[float | None]
    drift: Sequence[float | None] | None


def by_tenths(model: LanguageModel, task: Task) -> dict[str, Tenths]:
    """The accuracy and the drift of a model in each evaluation split of a task."""
    centres = None
    if isinstance(task, Automaton) and model.recurrent_layers:
        centres = StateCentres(model, task)
    return {name: _tenths(model, split, centres) for name, split in task.evaluation.items()}


class StateCentres:
    """The mean context of a model in each state of an automaton, over the rows of `validation`.

    These rows have the longest training length, so that a distance from the centres tells how far
    a context is from where the model has learned to read it.
    """

    @torch.no_grad()
    def __init__(self, model: LanguageModel, automaton: Automaton) -> None:
        self._automaton = automaton
        sums_SC, number_S = torch.zeros(()), torch.zeros(())
        for batch in on_device_of(model, automaton.evaluation[VALIDATION]):
            contexts_NC = model.trace(batch.tokens_BT).contexts_BTC.flatten(0, 1)
            is_in_NS = F.one_hot(self._states(batch).flatten(), automaton.num_answers)
            sums_SC = sums_SC + is_in_NS.to(contexts_NC).T @ contexts_NC
            number_S = number_S + is_in_NS.sum(0)
        self._centres_SC = sums_SC / number_S[:, None]  # nan for a state that is never reached
        self._separation = F.pdist(self._centres_SC[number_S > 0]).mean()

    def _states(self, batch: Batch) -> Tensor:
        """The true state after each token [B, T]."""
        symbols_BT = batch.tokens_BT.numpy(force=True) - FIRST_TOKEN
        return torch.from_numpy(self._automaton.states(symbols_BT)).to(batch.tokens_BT.device)

    def distances(self, batch: Batch, contexts_BTC: Tensor) -> Tensor:
        """How far each context is from the centre of its true state [B, T].

        The unit is the mean distance between two centres. A state without a centre has nan.
        """
        offsets_BTC = contexts_BTC - self._centres_SC[self._states(batch)]
        return offsets_BTC.norm(dim=-1) / self._separation


@torch.no_grad()
def _tenths(model: LanguageModel, split: Split, centres: StateCentres | None) -> Tenths:
    right, drift = _MeanByTenth(), _MeanByTenth()
    for batch in on_device_of(model, split):
        if centres:
            trace = model.trace(batch.tokens_BT)
            logits_BTV = trace.logits_BTV
            distance_BT = centres.distances(batch, trace.contexts_BTC)
            drift.add(distance_BT, distance_BT.isfinite())
        else:
            logits_BTV, _ = model(batch.tokens_BT)
        right.add(score_logits(logits_BTV, batch.targets_BT)[1], batch.scored_BT)
    return Tenths(right.num_positions, right.means(), drift.means() if centres else None)


class _MeanByTenth:
    """Means over each tenth of rows of one length."""

    def __init__(self) -> None:
        self.num_positions = 0
        self._total_D, self._number_D = torch.zeros(2, NUM_TENTHS, dtype=torch.double)

    def add(self, value_BT: Tensor, counts_BT: Tensor) -> None:
        """Add the values that count."""
        self.num_positions = value_BT.shape[1]
        tenth_T = torch.arange(self.num_positions) * NUM_TENTHS // self.num_positions
        total_T = value_BT.where(counts_BT, 0).sum(0, dtype=torch.double).cpu()
        self._total_D.index_add_(0, tenth_T, total_T)
        self._number_D.index_add_(0, tenth_T, counts_BT.sum(0, dtype=torch.double).cpu())

    def means(self) -> list[float | None]:
        """The mean of each tenth; None for one without values."""
        return [
            total / number if number else None
            for total, number in zip(self._total_D.tolist(), self._number_D.tolist(), strict=True)
        ]
