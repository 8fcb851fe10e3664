"""Which models track a state, and up to which length."""

from __future__ import annotations

import math
from collections.abc import Sequence

from newllm.reporting.document import Document
from newllm.reporting.formatting import percent_at_least
from newllm.reporting.models import NAMES
from newllm.reporting.page import Study
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run
from newllm.statistics.intervals import Interval
from newllm.studies.state_tracking.figures import accuracies
from newllm.studies.state_tracking.results import (
    NAME,
    SOLVED,
    TASKS,
    Entry,
    entries,
    lengths_of,
    own_runs,
)

DEFINITION = (
    "The models of a task have the same number of parameters, a table of learned positions aside, "
    "and read the same rows for the same number of steps. Each is trained with the same learning "
    "rates; the one with the lowest validation loss is trained again with other seeds, for drawn "
    "automata with other automata, and tested. Accuracies are in percent, rounded down. A run "
    "solves a task if at least {solved} % of its answers are right at every length. State: "
    "memory of one sequence of the longest length, in bytes (float32). The mean has its 95 % "
    "interval."
)
CAPTION = (
    "Mean accuracy by model and length, in percent. Colours range from the level of guessing to "
    "100 %. Left of the red line: training lengths."
)
DEFINITIONS = {
    "parity": "Whether the number of ones so far is odd.",
    "cycle": "The place on a cycle of five after steps of 0, +1 and -1.",
    "arithmetic": "The value modulo 5 of numbers joined by +, - and *.",
    "s3": "The product of the permutations of three elements so far.",
    "s3-128": "The product of the permutations of three elements so far.",
    "a5": "The product of the even permutations of five elements so far.",
    "s5": "The product of the permutations of five elements so far.",
    "regular": "The state of an automaton of eight states and three symbols, drawn at random.",
}
LENGTHS = "Trained on lengths up to {trained}, tested up to {longest}; guessing reaches {guess} %."
SOLVED_IN = {
    "all": "Solved in all runs: {models}.",
    "some": "Solved in some runs: {models}.",
    "none": "Solved in no run: {models}.",
}


def state_tracking(document: Document, runs: Sequence[Run], _: Translate, label: Translate) -> None:
    """Add the figure, and for each task a definition, a result and a table."""
    found = entries(runs)
    document.text(_(DEFINITION).format(solved=f"{100 * SOLVED:g}"))
    words = {
        "length": label("length"),
        "guessing": label("guessing"),
        **{key: label(text) for key, text in (TASKS | NAMES).items()},
    }
    document.figure("state_tracking", accuracies(found, words), _(CAPTION))
    for task, title in TASKS.items():
        if of_task := [entry for entry in found if entry.task == task]:
            document.text(f"### {_(title)}", f"{_definition(of_task, _)} {_result(of_task, _)}")
            _table(document, of_task, _)


def _definition(found: Sequence[Entry], _: Translate) -> str:
    entry = found[0]
    lengths = _(LENGTHS).format(
        trained=entry.longest_trained,
        longest=f"{lengths_of(found)[-1]:,}",
        guess=percent_at_least(entry.guessing),
    )
    return f"{_(DEFINITIONS[entry.task])} {lengths}"


def _told_lengths(found: Sequence[Entry]) -> list[int]:
    """The longest training length, the tested one nearest to four times it, and the longest."""
    lengths, trained = lengths_of(found), found[0].longest_trained
    near_fourfold = min(lengths, key=lambda length: abs(math.log(length / (4 * trained))))
    return [*dict.fromkeys([trained, near_fourfold, lengths[-1]])]


def _result(found: Sequence[Entry], _: Translate) -> str:
    """Which models solve a task in all runs, in some and in none."""
    models: dict[str, list[str]] = {share: [] for share in SOLVED_IN}
    for entry in found:
        number, most = entry.num_solved, len(entry.runs)
        share = "all" if number == most else "some" if number else "none"
        models[share].append(_(NAMES[entry.model]))
    return " ".join(
        _(text).format(models="; ".join(models[share]))
        for share, text in SOLVED_IN.items()
        if models[share]
    )


def _table(document: Document, found: Sequence[Entry], _: Translate) -> None:
    """The models of a task: sizes, accuracies at three lengths, and the runs that solve it."""
    lengths = _told_lengths(found)
    worst = _("worst run at {length}: answers / rows right")
    headings = [
        *(_(word) for word in ("model", "parameters", "state", "learning rate")),
        *(worst.format(length=f"{length:,}") for length in lengths),
        _("mean at {length}").format(length=f"{lengths[-1]:,}"),
        _("solved"),
    ]
    document.table(headings, [_row(entry, lengths, _) for entry in found])


def _row(entry: Entry, lengths: Sequence[int], _: Translate) -> list[str]:
    result, num_runs = entry.trial.result, len(entry.runs)
    diverged = num_runs - len(entry.by_length)
    return [
        _(NAMES[entry.model]),
        f"{result['parameters']:,}",
        f"{result['state_bytes']:,}",
        str(entry.trial.chose("optimizer.lr")),
        *(_worst(entry, length) for length in lengths),
        _mean(entry.accuracy(lengths[-1])),
        _("{number} of {most}").format(number=entry.num_solved, most=num_runs)
        + f", {diverged} {_('diverged')}" * bool(diverged),
    ]


def _mean(interval: Interval | None) -> str:
    """A mean accuracy with its interval, in percent."""
    if interval is None:
        return "-"
    mean = percent_at_least(interval.mean)
    if not math.isfinite(interval.half_width):
        return mean
    return f"{mean} &plusmn; {100 * interval.half_width:.1f}"


def _worst(entry: Entry, length: int) -> str:
    """The lowest accuracy, and the lowest share of rows without a mistake, of all runs."""
    if length not in entry.lengths:
        return "-"
    return " / ".join(
        percent_at_least(min(entry.values(length, metric)))
        for metric in ("accuracy", "accuracy_sequence")
    )


STUDY = Study(
    NAME,
    title="State tracking beyond the training lengths",
    place=5,
    own=own_runs,
    part=state_tracking,
)
