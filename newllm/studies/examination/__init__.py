"""What a model is worth: one card from language, text, automata, recall, and measurements."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from newllm.config.naming import TRIAL, folder_name, run_folder, split
from newllm.reporting.document import Document, quoted
from newllm.reporting.page import Study
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run, committed, read_run
from newllm.runs.writing import write_text
from newllm.studies.examination.card import Card, shown, signed
from newllm.studies.examination.figures import picture
from newllm.studies.examination.measured import Measured, measure
from newllm.studies.examination.results import (
    BASELINES,
    NAME,
    TASKS,
    Difference,
    Examined,
    differences,
    examined,
    own_runs,
)

DEFINITION = (
    "Every model gets the same tasks, parameters, steps and learning rates; the rate with the "
    "lowest validation loss is run again with three other seeds, which are averaged, with 95 % "
    "intervals. "
    "Language: test loss in nats per token. Source code: bits per byte on the test documents. "
    "Parity, S3 and S5: accuracy (%) at the longest rows, which are far longer than those of "
    "training. Recall: bits recalled of a row with the most pairs."
)
COMPARISON = (
    "The runs of each task are compared with those of the baselines by Welch's t-test, with Holm's "
    "correction over all comparisons of the card. `as good` means that the difference is certainly "
    "smaller than anyone should care for: 0.05 nats, 0.02 bits per byte, 1 % of the answers, 1 bit "
    "recalled. A task of states is solved at a length if every run has at least 99.9 % of the "
    "answers right. Times were taken side by side on this machine, with models of equal parameters."
)
DIFFERENCES = (
    "Differences from {model}, with 95 % intervals. The verdicts are those of one family of "
    "comparisons (Welch's t-test, Holm's correction)."
)
PLAIN = {"model": "gated", "model.num_layers": "2"}
CARDS = "cards"  # a folder beside that of the runs


def finish(top: Path, jobs: Sequence[Sequence[str]]) -> None:
    """Write the card of each model that was examined, and print the sentences to read first.

    Args:
        top: the folder of all sweeps.
        jobs: the overrides of each job.
    """
    own = _runs_of(top, jobs)
    ran = examined(own)
    known = examined([*own, *_not_among(committed(NAME), own)])
    for one in [one for one in ran if not one.baseline] or ran:
        baselines = {other.baseline: other for other in known if one.is_like(other)}
        compared = {key: baselines[key] for key in BASELINES if key in baselines}
        compared.pop(str(one.baseline), None)
        card = Card(one, compared, _measure(one, _trusted(jobs)))
        folder = top.parent / CARDS / folder_name(f"{one.label}, {one.size}")
        write(card, folder)
        print(*card.sentences, sep="\n")
        print(f"card: {folder / 'index.html'}")
    if not ran:
        print("no card: no task has a run of its best trial with another seed", file=sys.stderr)


def _runs_of(top: Path, jobs: Sequence[Sequence[str]]) -> list[Run]:
    """The runs of the jobs that have a result."""
    folders = [top / run_folder(lines, int(dict(map(split, lines))["seed"])) for lines in jobs]
    return [read_run(folder) for folder in folders if (folder / "result.json").is_file()]


def _not_among(runs: Sequence[Run], others: Sequence[Run]) -> list[Run]:
    """The runs of each model on tasks that none of the others has it on.

    The sweep runs a baseline again on those tasks alone whose configuration has changed.
    """
    there = [_place(run) for run in others]
    return [run for run in runs if _place(run) not in there]


def _place(run: Run) -> tuple[str | None, dict[str, str]]:
    """The size and task of a run, and all that was chosen beside them and its trial."""
    return run.known_as, {key: value for key, value in run.choices.items() if key != TRIAL}


def write(card: Card, folder: Path) -> None:
    """Write a card as a page, a picture and a file of its measurements."""
    folder.mkdir(parents=True, exist_ok=True)
    document = Document(quoted(card.title), "en")
    document.text(*map(quoted, card.sentences))
    names = [BASELINES[name] for name in card.baselines]
    rows = [
        [row.name, row.value, *(row.others.get(name, "-") for name in names), quoted(row.verdict)]
        for row in card.rows
    ]
    document.table(["", quoted(card.model.label), *names, "verdict"], rows)
    document.figure("card", picture(card), "The card. Right is better; lines are 95 % intervals.")
    document.text(DEFINITION, COMPARISON)
    document.write(folder)
    record = {
        "model": {**card.model.model, **card.model.others},
        "size": card.model.size,
        "sentences": card.sentences,
        "measured": card.measured and card.measured.record,
    }
    write_text(folder / "card.json", json.dumps(record, indent=1) + "\n")


def _measure(one: Examined, trusted: Sequence[str]) -> Measured | None:
    run = one.text_run
    if run is None or not Path(run.place).is_dir():
        return None
    try:
        return measure(Path(run.place), trusted)
    except Exception as error:  # of a user's own code
        print(f"{run.place}: cannot be measured ({error})", file=sys.stderr)
        return None


def _trusted(jobs: Sequence[Sequence[str]]) -> list[str]:
    lines = [value for job in jobs for key, value in map(split, job) if key == "trusted_packages"]
    return [name.strip(" '\"") for name in lines[0].strip("[]").split(",")] if lines else []


def models(document: Document, runs: Sequence[Run], _: Translate, label: Translate) -> None:
    """Add the table of all models, and how each differs from the plain gated context model."""
    document.text(_(DEFINITION))
    found = examined(runs)
    tasks = [_(TASKS[task].title) for task in TASKS]
    document.table(
        [_("model"), _("size"), *tasks],
        [[quoted(one.label), one.size, *(shown(one.mean(task), task) for task in TASKS)]
         for one in found],
    )  # fmt: skip
    pairs = [
        (one, other)
        for one in found
        for other in found
        if one.is_like(other) and other.model == PLAIN and one is not other
    ]
    compared = {
        (one.model.size, one.model.label, one.task): _difference(one, _)
        for one in differences(pairs)
    }
    if compared:
        document.text(_(DIFFERENCES).format(model=pairs[0][1].label))
        rows = [
            [quoted(one.label), one.size]
            + [compared.get((one.size, one.label, task), "-") for task in TASKS]
            for one, _plain in pairs
        ]
        document.table([_("model"), _("size"), *tasks], rows)


def _difference(one: Difference, _: Translate) -> str:
    return f"{_(one.verdict)} {signed(one.interval, one.task)}"


STUDY = Study(
    NAME, title="What models are worth", place=10, own=own_runs, part=models, finish=finish
)
