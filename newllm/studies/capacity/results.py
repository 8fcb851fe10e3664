"""How few bits a context may have (`sweep=capacity`): losses by size, beside the exact floor.

Losses are means over the test split, in nats per symbol. As the loss of the source itself is known
on the same rows, its deviation from its expectation, which is chance, is subtracted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, product, takewhile

from newllm.runs.gathering import Run
from newllm.statistics.intervals import Interval, mean_interval
from newllm.studies.capacity.floor import floor, smallest_context

NAME = "capacity"
# Variants are called SOURCE or MEMORY_SOURCE. These endings are for sizes that are made otherwise.
NO_CONTEXT, TWO_HEADS = "_0", "_heads2"
MEMORIES = {"heads": "context of two heads", "matrix": "matrix, delta rule"}
CHOICES = {"model.context_dim", "model.num_heads"}  # that decide on the bits
SOURCES = {
    "copy_1": "delayed copy of 2 kinds",
    "copy_3": "delayed copy of 8 kinds",
    "copy_6": "delayed copy of 64 kinds",
    "even": "even process",
    "grammar": "sentences of a grammar",
    "drawn1": "drawn machine 1",
    "drawn2": "drawn machine 2",
    "drawn3": "drawn machine 3",
}
NEGLIGIBLE = 1e-3  # nats; losses that reach the floor scatter around it by less
TOLERANCE = 0.05  # of the gap between the window of one symbol and the source itself


@dataclass(frozen=True)
class Capacity:
    """A source and the losses of contexts on it.

    Attributes:
        source: a key of `SOURCES`.
        memory: a key of `MEMORIES`; None for a plain context.
        window_losses: of the best windows of 1, 2, ... symbols.
        entropy_rate: the lower bound of that of the source.
        oracle: the expected loss of the source itself on rows of this length.
        losses: of the runs, by the bits of their context.
    """

    source: str
    memory: str | None
    window_losses: Sequence[float]
    entropy_rate: float
    oracle: float
    losses: Mapping[float, Sequence[float]]

    @property
    def means(self) -> dict[float, Interval]:
        """Mean losses by bits."""
        return {bits: mean_interval(losses) for bits, losses in sorted(self.losses.items())}

    @property
    def below_floor(self) -> list[float]:
        """Bits for which the mean loss is certainly below the floor, which none should be."""
        means = self.means.items()
        return [bits for bits, mean in means if mean.high < self.floor(bits) - NEGLIGIBLE]

    def floor(self, bits: float) -> float:
        """The least expected loss of a context on rows of this length."""
        return max(self.oracle, floor(bits, self.window_losses, self.entropy_rate))

    @property
    def predicted(self) -> float:
        """Bits that the past holds about the future beyond the symbol that is read."""
        return smallest_context(self.entropy_rate, self.window_losses)

    @property
    def near_oracle(self) -> float:
        """The loss from which on a context counts as large enough."""
        return self.oracle + TOLERANCE * (self.window_losses[0] - self.oracle)

    @property
    def needed(self) -> float:
        """The fewest bits for which the floor permits that loss."""
        return smallest_context(self.near_oracle, self.window_losses)

    @property
    def measured(self) -> float | None:
        """The fewest bits for which the mean loss is that low; None if none is."""
        means = self.means.items()
        return next((bits for bits, mean in means if mean.mean <= self.near_oracle), None)


def capacities(runs: Sequence[Run], memories: Iterable[str | None] = (None,)) -> list[Capacity]:
    """All sources with runs of plain contexts, or of other memories."""
    return [
        _capacity(source, memory, own)
        for source, memory in product(SOURCES, memories)
        if (own := [run for run in own_runs(runs) if made_for(run) == (source, memory)])
    ]


def own_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs of the study that differ from their variant in the size of the memory alone."""
    return [
        run
        for run in runs
        if run.study == NAME
        and run.is_done
        and run.choices.keys() <= CHOICES
        and made_for(run)[0] in SOURCES
        and run.result.get("test_loss") is not None
    ]


def made_for(run: Run) -> tuple[str, str | None]:
    """The source that a run of the study was trained on, and the kind of its memory."""
    name = str(run.known_as).removesuffix(NO_CONTEXT).removesuffix(TWO_HEADS)
    memory, _, source = name.partition("_")
    return (source, memory) if memory in MEMORIES else (name, None)


def _capacity(source: str, memory: str | None, runs: Sequence[Run]) -> Capacity:
    references, oracle = runs[0].result["references"], runs[0].result["entropy_floor"]
    names = takewhile(references.__contains__, (f"window_{k}" for k in count(1)))
    losses: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        chance = run.result["test_oracle_loss"] - oracle
        losses[run.result["state_bits"]].append(run.result["test_loss"] - chance)
    window_losses = [references[name] for name in names]
    return Capacity(source, memory, window_losses, references["entropy_rate"], oracle, losses)
