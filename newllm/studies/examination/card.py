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
    def title(self) -> str:
        """The model, and the size of the examination if that is not the full one."""
        size = "" if self.model.size == "full" else f" ({self.model.size})"
        return f"{self.model.label}: card{size}"

    @property
    def rows(self) -> list[Row]:
        """All rows, in the order of a card."""
        tasks = [self._task_row(task) for task in TASKS if task in self.model.runs]
        return [*tasks, *self._generalisation(), *self._measurements()]

    @property
    def sentences(self) -> tuple[str, str]:
        """What to read first."""
        return self._first_sentence, self._second_sentence

    @property
    def _first_sentence(self) -> str:
        """Whether it can be trusted, and how it compares on language and text."""
        label = self.model.label
        if self.measured and self.measured.sees_the_future:
            return f"{label} sees the future, so that its losses mean nothing."
        if self.measured and self.measured.broken:
            return f"{label} breaks the contract of its layers: {self.measured.broken[0]}."
        told = []
        for name in self.baselines:
            found = [
                verdict
                for (task, other), verdict in self._verdicts.items()
                if other == name and TASKS[task].is_loss
            ]
            rest = [
                f"{found.count(verdict)} {verdict}"
                for verdict in (EQUAL, WORSE, UNDECIDED)
                if verdict in found
            ]
            if found:
                told.append(
                    f"better than the {BASELINES[name]} in {found.count(BETTER)} of {len(found)} "
                    f"tasks{f' ({_and(rest)})' if rest else ''}"
                )
        if not told:
            return f"There is nothing to compare {label} with on language and text."
        return f"On language and text, {label} is {_and(told)}."

    @property
    def _second_sentence(self) -> str:
        """What it tracks, recalls and keeps."""
        solved = [task for task in self._tracking if self.model.solved_length(task)]
        failed = [TASKS[task].title for task in self._tracking if task not in solved]
        parts = []
        if solved:
            parts.append(f"tracks {_and([TASKS[task].title for task in solved])}{self._reach}")
        if failed:
            parts.append(f"does not learn to track {_and(failed)}")
        if recalled := self.model.mean("recall"):
            parts.append(f"recalls {recalled.mean:.0f} of {self._bits_asked:.0f} bits")
        if self.measured:
            parts.append(f"keeps {_state(self.measured.state_bytes)}")
        hasty = (
            "" if self.model.size == "full" else " This is a first look: all runs were shortened."
        )
        return (f"It {_and(parts)}." if parts else "Nothing else was examined.") + hasty

    @property
    def _tracking(self) -> list[str]:
        return [task for task in TASKS if TASKS[task].is_tracking and task in self.model.runs]

    @property
    def _reach(self) -> str:
        """How far beyond its training rows it tracks what it learned."""
        times = [
            _ratio(self.model, task) for task in self._tracking if self.model.solved_length(task)
        ]
        low, high = f"{min(times):.1f}", f"{max(times):.1f}"
        if high == "1.0":
            return " at the lengths of training alone"
        return f" to {low}{f' to {high}' if high != low else ''} times the length of training"

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
        nothing = "too few runs" if others else "nothing to compare with"
        verdict = "; ".join(against) or nothing
        if number := self.model.diverged.get(task):
            verdict = f"{number} run(s) diverged; {verdict}"
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
        trained = trained_length(self.model.runs[task][0])
        length = self.model.solved_length(task)
        if not length:
            return f"not solved ({percent(self.model.learned(task))} at {trained})"
        return f"solved to {length:,}, {length / trained:.1f} times the length of training"

    def _generalisation(self) -> Iterator[Row]:
        if not self._tracking:
            return
        titles = ", ".join(TASKS[task].title for task in self._tracking)
        yield Row(
            "length generalisation",
            self._ratios(self.model),
            {BASELINES[name]: self._ratios(one) for name, one in self.baselines.items()},
            f"longest rows solved, over the longest of training ({titles})",
        )

    def _ratios(self, one: Examined) -> str:
        found = [
            f"{_ratio(one, task):.1f}x" if task in one.runs else "-" for task in self._tracking
        ]
        return ", ".join(found)

    def _measurements(self) -> Iterator[Row]:
        measured = self.measured
        if measured is None:
            return
        names = [name for name in BASELINES.values() if name in measured.step_ms]
        causal = "sees the future" if measured.sees_the_future else "causal"
        yield Row(
            "contract of the layers",
            "broken" if measured.broken else "kept",
            {},
            "; ".join(measured.broken)
            or f"{causal}; chunks, padding and resets as promised; gradients as finite differences",
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


def _ratio(one: Examined, task: str) -> float:
    """The longest rows that are solved, over the longest of training."""
    return one.solved_length(task) / trained_length(one.runs[task][0])


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
