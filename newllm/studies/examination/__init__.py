"""What a model is worth: one card from language, text, automata, recall, and measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from newllm.config.naming import TRIAL, choices, folder_name, split
from newllm.config.study_file import baselines_of
from newllm.reporting.document import Document, quoted
from newllm.reporting.page import Study
from newllm.reporting.translation import Translate
from newllm.runs.directory import write_text
from newllm.runs.gathering import Run, committed, gather
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
    known = examined([*gather([top]), *committed(NAME)])
    asked = {frozenset(_model(lines).items()) for lines in jobs}
    given = {frozenset(choices(lines).items()) for lines in baselines_of(NAME).values()}
    sizes = {str(choices(lines).get("variant", "")).split("_")[1] for lines in jobs}
    trusted = _trusted(jobs)
    for one in known:
        made_of = frozenset(one.choices.items())
        if one.size in sizes and made_of in asked and (made_of not in given or asked <= given):
            card = Card(one, _baselines(known, one), _measure(one, trusted))
            folder = top.parent / CARDS / folder_name(f"{one.label}, {one.size}")
            write(card, folder)
            print(*card.sentences, sep="\n")
            print(f"card: {folder / 'index.html'}")


def write(card: Card, folder: Path) -> None:
    """Write a card as a page, a picture and a file of its measurements."""
    folder.mkdir(parents=True, exist_ok=True)
    document = Document(f"{quoted(card.model.label)}: card", "en")
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
        "model": dict(card.model.choices),
        "size": card.model.size,
        "sentences": card.sentences,
        "measured": card.measured and card.measured.record,
    }
    write_text(folder / "card.json", json.dumps(record, indent=1) + "\n")


def _baselines(known: Sequence[Examined], one: Examined) -> Mapping[str, Examined]:
    found = {other.baseline: other for other in known if other.size == one.size and other != one}
    return {name: found[name] for name in BASELINES if name in found}


def _measure(one: Examined, trusted: Sequence[str]) -> Measured | None:
    run = one.text_run
    if run is None or not Path(run.place).is_dir():
        return None
    return measure(Path(run.place), trusted)


def _model(lines: Sequence[str]) -> dict[str, str]:
    return {k: v for k, v in choices(lines).items() if k not in (TRIAL, "variant")}


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
    plain = {one.size: one for one in found if one.choices == PLAIN}
    pairs = [(one, plain[one.size]) for one in found if one.size in plain and one.choices != PLAIN]
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
