"""The page of a report: what each study says of its runs, and a comparison of all others."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from newllm.config.naming import TRIAL
from newllm.config.study_file import variants_of
from newllm.reporting.document import Document, quoted
from newllm.reporting.drawing import can_show
from newllm.reporting.own_runs import own_runs
from newllm.reporting.tables import runs_table
from newllm.reporting.translation import Translate, translator
from newllm.runs.gathering import Run
from newllm.statistics.comparisons import Contest, contests

OWN_TITLE = "Runs side by side"
CHANGED = (
    "{number} run(s) of sweep={study} are not in its section because their variant was "
    "changed: {changes}."
)
MOST_CHANGES = 5  # that are told
NO_FONT = "Figures are in English because no installed font has the letters of this page."


@dataclass(frozen=True)
class Study:
    """A study as the report shows it.

    Attributes:
        name: of its sweep.
        title: of its part, and of the whole page where no other runs are on it.
        place: among the studies of a page; the lowest comes first.
        own: which of some runs have their place in it, and need none in a list of others.
        part: writes its part into a document, given all runs and the words of the page and of its
            figures. It is called only where it has runs of its own.
        opens: whether a page with any of its runs is of this study.
    """

    name: str
    title: str
    place: int
    own: Callable[[Sequence[Run]], list[Run]]
    part: Callable[[Document, Sequence[Run], Translate, Translate], None]
    opens: bool = False


@dataclass(frozen=True)
class Page:
    """What a page is made of.

    Attributes:
        runs: all of them.
        studies: those that may have a part in it.
        baseline: what groups of runs are compared with, as in `contests`; a page with a baseline
            is of groups alone.
        lang: one of `LANGUAGES`.
        judged: `contests(runs, baseline)`, where they are known already.
    """

    runs: Sequence[Run]
    studies: Sequence[Study] = ()
    baseline: str | None = None
    lang: str = "en"
    judged: Sequence[Contest] | None = None

    @cached_property
    def opening(self) -> Study | None:
        """The study that the page is of."""
        found = [study for study, _ in self._shown if study.opens or self._is_all_of(study)]
        return next(iter(found), None)

    @cached_property
    def _shown(self) -> list[tuple[Study, list[Run]]]:
        """The studies that have a part, with the runs that are their own."""
        return [(study, own) for study in self._candidates if (own := study.own(self.runs))]

    @property
    def _candidates(self) -> Sequence[Study]:
        return self.studies if self.baseline is None else ()

    def _is_all_of(self, study: Study) -> bool:
        """Whether the sweep of a study made all runs that are done, or may have."""
        of_it = {(study.name, None), *((None, name) for name in variants_of(study.name))}
        done = [run for run in self.runs if run.is_done]
        return all((run.study, None if run.study else run.known_as) in of_it for run in done)

    def changed(self, _: Translate) -> Iterator[str]:
        """For each study how many runs are not in its part because they were changed, and how."""
        of_study = {id(run) for _study, own in self._shown for run in own}
        for study in self._candidates:
            changes = [
                [f"{key}={value}" for key, value in run.choices.items() if key != TRIAL]
                for run in self.runs
                if run.study == study.name and run.is_done and id(run) not in of_study
            ]
            if number := sum(map(bool, changes)):
                told = list(dict.fromkeys(itertools.chain(*changes)))
                told[MOST_CHANGES:] = ["..."] * (len(told) > MOST_CHANGES)
                yield _(CHANGED).format(number=number, study=study.name, changes=", ".join(told))

    def write(self, folder: Path) -> Path:
        """Write `report.md`, `index.html` and figures into a folder; returns the page's place.

        Raises:
            ValueError: there is no such baseline; nothing was written.
        """
        document = self._compose(folder)
        document.write_markdown(folder / "report.md")
        title = self.opening.title if self.opening else OWN_TITLE
        return document.write_html(folder / "index.html", translator(self.lang)(title), self.lang)

    def write_markdown(self, path: Path) -> Path:
        """Write one file of Markdown, its figures into a folder named like it."""
        return self._compose(path.with_suffix("")).write_markdown(path)

    def _compose(self, folder: Path) -> Document:
        """The whole page; where no font has the letters, figures keep their English words."""
        of_study = {id(run) for _study, own in self._shown for run in own}
        others = [run for run in self.runs if id(run) not in of_study]
        opening, found = self.opening, self.judged if not of_study else None
        if found is None and not opening:
            found = contests(others, self.baseline)
        folder.mkdir(parents=True, exist_ok=True)
        document, _ = Document(folder), translator(self.lang)
        label = _ if can_show(_(NO_FONT)) else translator("en")
        document.text(f"# {_(opening.title if opening else OWN_TITLE)}")
        if found and not opening:
            own_runs(document, found, others, _, label)
        for study, _own in self._shown:
            if study is opening:
                study.part(document, self.runs, _, label)
                continue
            document.fold(_(study.title))
            study.part(document, self.runs, _, label)
            document.unfold()
        document.text(*map(quoted, self.changed(_)))
        commands = "`python -m newllm.report`"
        if opening:
            _other_runs(document, self.runs, others, _)
            commands = f"`python -m newllm.train sweep={opening.name}`, {commands}"
        _origin(document, self.runs, commands, _)
        if document.figures and label is not _:
            document.text(_(NO_FONT))
        return document


def _other_runs(
    document: Document, runs: Sequence[Run], others: Sequence[Run], _: Translate
) -> None:
    """Those that have no place of their own, and those that have no result."""
    for title, chosen in (
        (_("Failed and unfinished runs"), [run for run in runs if not run.is_done]),
        (_("Other runs"), [run for run in others if run.is_done]),
    ):
        if chosen:
            document.fold(f"{title} ({len(chosen)})")
            runs_table(document, chosen, _)
            document.unfold()


def _origin(document: Document, runs: Sequence[Run], commands: str, _: Translate) -> None:
    document.fold(_("How this page was made"))
    revisions = Counter(quoted(run.result.get("git_revision") or "-")[:12] for run in runs)
    seconds = sum(run.result.get("seconds") or 0.0 for run in runs)
    threads = sorted({quoted(run.result["threads"]) for run in runs if run.is_known})
    by_revision = _("{num_runs} runs at revision {revision}")
    document.text(
        commands,
        _("{runs}. Total run time: {minutes} minutes, with {threads} thread(s) per run.").format(
            runs=", ".join(
                by_revision.format(num_runs=number, revision=revision)
                for revision, number in revisions.most_common()
            ),
            minutes=f"{seconds / 60:.0f}",
            threads=", ".join(threads),
        ),
    )
    document.unfold()
