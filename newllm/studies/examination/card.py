"""The card of a model: a verdict for each task and measurement, and two sentences to read first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from newllm.reporting.formatting import percent
from newllm.statistics.intervals import Interval
from newllm.studies.examination.measured import LENGTHS, MODEL, PLAIN_LOOP, Measured
from newllm.studies.examination.results import (
    BASELINES,
    BETTER,
    EQUAL,
    TASKS,
    UNDECIDED,
    WORSE,
    Examined,
    differences,
    lengths_of,
    trained_length,
)

IN_WORDS = {
    BETTER: "better than",
    WORSE: "worse than",
    EQUAL: "as good as",
    UNDECIDED: "undecided against",
}


@dataclass(frozen=True)
class Row:
    """A row of a card.

    Attributes:
        name: of the task or measurement.
        value: of the model.
        others: of the baselines, by name.
        verdict: in words.
        points: what a figure shows of each, by name.
        is_loss: whether less is better; None if there is nothing to show.
    """

    name: str
    value: str
    others: Mapping[str, str]
    verdict: str
    points: Mapping[str, Interval] = field(default_factory=dict)
    is_loss: bool | None = None


@dataclass(frozen=True)
class Card:
    """What is known of a model.

    Attributes:
        model: as it was examined.
        baselines: likewise, at the same size, by name.
        measured: None if there is no run on text.
    """

    model: Examined
    baselines: Mapping[str, Examined]
    measured: Measured | None

    @property
    def rows(self) -> list[Row]:
        """All rows, in the order of a card."""
        tasks = [self._task_row(task) for task in TASKS if task in self.model.runs]
        return [*tasks, *self._generalisation(), *self._measurements()]

    @property
    def sentences(self) -> tuple[str, str]:
        """What to read first."""
        label = self.model.label
        language = [task for task in TASKS if TASKS[task].is_loss and task in self.model.runs]
        told = []
        for name, one in self.baselines.items():
            better = [task for task in language if self._verdicts.get((task, name)) == BETTER]
            worse = [task for task in language if self._verdicts.get((task, name)) == WORSE]
            if language and one.runs:
                told.append(
                    f"{len(better)} of {len(language)} against the {BASELINES[name]}"
                    + (f" ({len(worse)} worse)" if worse else "")
                )
        first = f"On language and text, {label} is better in {' and in '.join(told)}"
        first = f"{first}." if told else f"There is nothing to compare {label} with on language."
        tracked = [TASKS[task].title for task in self._tracking if self.model.solved_length(task)]
        failed = [
            TASKS[task].title for task in self._tracking if not self.model.solved_length(task)
        ]
        parts = []
        if tracked:
            parts.append(f"tracks {_and(tracked)}{self._reach}")
        if failed:
            parts.append(f"does not learn to track {_and(failed)}")
        if (recalled := self.model.mean("recall")) and self.model.runs.get("recall"):
            parts.append(f"recalls {recalled.mean:.0f} of {self._bits_asked:.0f} bits")
        if self.measured:
            parts.append(f"keeps {_state(self.measured.state_bytes)}")
        return first, f"It {_and(parts)}."

    @property
    def _tracking(self) -> list[str]:
        return [task for task in TASKS if TASKS[task].is_tracking and task in self.model.runs]

    @property
    def _reach(self) -> str:
        """How far beyond its training rows it tracks what it learned."""
        times = [
            self.model.solved_length(task) / trained_length(self.model.runs[task][0])
            for task in self._tracking
            if self.model.solved_length(task)
        ]
        low, high = min(times), max(times)
        if high <= 1:
            return " at the lengths of training"
        reach = f"{low:.0f}" + (f" to {high:.0f}" if high > low else "")
        return f" to {reach} times the length of training"

    @property
    def _bits_asked(self) -> float:
        """Of the rows of recall with the most pairs."""
        run = self.model.runs["recall"][0]
        pairs, vocabulary = lengths_of(run)[-1], int(run.chose("data.vocabulary") or 2)
        return pairs * (vocabulary // 2 - 1).bit_length()

    @cached_property
    def _verdicts(self) -> dict[tuple[str, str], str]:
        """How the model compares, by task and baseline."""
        found = differences([(self.model, one) for one in self.baselines.values()])
        return {(each.task, str(each.other.baseline)): each.verdict for each in found}

    def _task_row(self, task: str) -> Row:
        own, known = self.model.mean(task), TASKS[task]
        others = {name: mean for name, one in self.baselines.items() if (mean := one.mean(task))}
        points = {**({MODEL: own} if own else {}), **others}
        against = [
            f"{IN_WORDS[verdict]} {BASELINES[name]}"
            for (of, name), verdict in self._verdicts.items()
            if of == task
        ]
        verdict = "; ".join(against) or "nothing to compare with"
        if known.is_tracking:
            verdict = f"{self._solved(task)}; {verdict}"
        run = self.model.runs[task][0]
        name = known.title
        if lengths := lengths_of(run):
            unit = "pairs" if task == "recall" else "symbols"
            name = f"{name}, {lengths[-1]:,} {unit} (trained to {trained_length(run):,})"
        return Row(
            name,
            shown(own, task),
            {BASELINES[key]: shown(mean, task) for key, mean in others.items()},
            verdict,
            {
                BASELINES.get(key, key): Interval(
                    known.scale * mean.mean, known.scale * mean.half_width, mean.num_runs
                )
                for key, mean in points.items()
            },
            known.is_loss,
        )

    def _solved(self, task: str) -> str:
        length, trained = (
            self.model.solved_length(task),
            trained_length(self.model.runs[task][0]),
        )
        at = self.model.accuracy(task, lengths_of(self.model.runs[task][0])[0])
        if not length:
            return f"not solved ({percent(at.mean if at else None)} at the shortest length)"
        return f"solved to {length:,}, {length / trained:.1f} times the length of training"

    def _generalisation(self) -> Iterator[Row]:
        if not self._tracking:
            return
        own = [self._times(self.model, task) for task in self._tracking]
        yield Row(
            "length generalisation",
            ", ".join(own),
            {
                BASELINES[name]: ", ".join(
                    self._times(one, task) for task in self._tracking if task in one.runs
                )
                for name, one in self.baselines.items()
                if set(self._tracking) & one.runs.keys()
            },
            f"longest rows solved, over the longest of training ({', '.join(self._tracking)})",
        )

    @staticmethod
    def _times(one: Examined, task: str) -> str:
        return f"{one.solved_length(task) / trained_length(one.runs[task][0]):.0f}x"

    def _measurements(self) -> Iterator[Row]:
        measured = self.measured
        if measured is None:
            return
        names = [name for name in BASELINES.values() if name in measured.step_ms]
        yield Row(
            "contract of the layers",
            "broken" if measured.broken else "kept",
            {},
            "; ".join(measured.broken)
            or "causal; chunks, padding and resets as promised; gradients as finite differences",
        )
        against = [
            f"{ratio:.1f} times as fast as its plain loop"
            if name == PLAIN_LOOP
            else f"{ratio:.1f} times as fast as {name}"
            for name, ratio in measured.step_ratios.items()
            if name != MODEL
        ]
        yield Row(
            "training step",
            f"{measured.step_ms[MODEL]:.1f} ms",
            {name: f"{measured.step_ms[name]:.1f} ms" for name in names},
            "; ".join(against),
        )
        if rates := measured.tokens_per_second:
            yield Row(
                "generation",
                f"{rates[MODEL]:,.0f} tokens/s",
                {name: f"{rates[name]:,.0f} tokens/s" for name in names if name in rates},
                "; ".join(
                    f"{rates[MODEL] / rates[name]:.1f} times as fast as {name}"
                    for name in names
                    if name in rates
                ),
            )
        yield Row(
            "state of a text",
            f"{measured.state_bytes[-1]:,} bytes after {LENGTHS[-1]:,} tokens",
            {},
            _state(measured.state_bytes),
        )


UNITS = {"accuracy": " %", "test_bits_per_byte": " bits/byte", "bits_recalled": " bits"}


def shown(interval: Interval | None, task: str) -> str:
    """The mean of a task and its interval, with the unit."""
    if interval is None:
        return "-"
    scale, digits = TASKS[task].scale, 3 if TASKS[task].is_loss else 1
    spread = f" &plusmn; {scale * interval.half_width:.{digits}f}" if interval.num_runs > 1 else ""
    return f"{scale * interval.mean:.{digits}f}{spread}{UNITS.get(TASKS[task].metric, ' nats')}"


def signed(interval: Interval, task: str) -> str:
    """A difference in a task and its interval, such as `-0.100 &plusmn; 0.020`."""
    scale, digits = TASKS[task].scale, 3 if TASKS[task].is_loss else 1
    half_width = f"{scale * interval.half_width:.{digits}f}"
    return f"{scale * interval.mean:+.{digits}f} &plusmn; {half_width}"


def _state(state_bytes: Sequence[int]) -> str:
    if len(set(state_bytes)) == 1:
        return f"a state of {state_bytes[0]:,} bytes, whatever the length"
    return f"a state that grows from {state_bytes[0]:,} to {state_bytes[-1]:,} bytes"


def _and(parts: Sequence[str]) -> str:
    return " and ".join([*([", ".join(parts[:-1])] if parts[1:] else []), *parts[-1:]])
