"""The page of a report: the parts of studies, and a comparison of all other runs."""

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
        title: of its part, and of the page where no other runs are on it.
        place: among the studies of a page; the lowest comes first.
        own: returns the given runs that belong to it, which no list of other runs repeats.
        part: adds its part to a document, given all runs and the translations of the page and of
            its figures; called only if it has runs of its own.
        opens: whether any page with its runs has its title.
        finish: what a sweep of it does at its end, given the folder of all sweeps and the overrides
            of its jobs.
    """

    name: str
    title: str
    place: int
    own: Callable[[Sequence[Run]], list[Run]]
    part: Callable[[Document, Sequence[Run], Translate, Translate], None]
    opens: bool = False
    finish: Callable[[Path, Sequence[Sequence[str]]], None] | None = None


@dataclass(frozen=True)
class Page:
    """A page of runs.

    Attributes:
        runs: all of them.
        studies: those that may have a part in it.
        baseline: as in `contests`; a page with a baseline has no parts of studies.
        lang: one of `LANGUAGES`.
    """

    runs: Sequence[Run]
    studies: Sequence[Study] = ()
    baseline: str | None = None
    lang: str = "en"

    @cached_property
    def contests(self) -> list[Contest]:
        """Of all runs."""
        return contests(self.runs, self.baseline)

    @cached_property
    def opening(self) -> Study | None:
        """The study whose title the page has."""
        found = (study for study, _ in self._shown if study.opens or self._is_all_of(study))
        return next(found, None)

    @cached_property
    def _shown(self) -> list[tuple[Study, list[Run]]]:
        """The studies that have a part, with the runs that are their own."""
        return [(study, own) for study in self._candidates if (own := study.own(self.runs))]

    @property
    def _candidates(self) -> Sequence[Study]:
        return self.studies if self.baseline is None else ()

    def _is_all_of(self, study: Study) -> bool:
        """Whether all finished runs are of a study's sweep, or could be."""
        of_it = {(study.name, None), *((None, name) for name in variants_of(study.name))}
        done = [run for run in self.runs if run.is_done]
        return all((run.study, None if run.study else run.known_as) in of_it for run in done)

    @cached_property
    def _others(self) -> list[Run]:
        """The runs that no study shows."""
        of_study = {id(run) for _study, own in self._shown for run in own}
        return [run for run in self.runs if id(run) not in of_study]

    def changed(self, _: Translate) -> Iterator[str]:
        """A line for each study with finished runs that it does not show, and their changes."""
        for study in self._candidates:
            changes = [
                [f"{key}={value}" for key, value in run.choices.items() if key != TRIAL]
                for run in self._others
                if run.study == study.name and run.is_done
            ]
            if number := sum(map(bool, changes)):
                told = list(dict.fromkeys(itertools.chain(*changes)))
                told[MOST_CHANGES:] = ["..."] * (len(told) > MOST_CHANGES)
                text = _(CHANGED)
                yield text.format(number=number, study=study.name, changes=", ".join(told))

    def compose(self) -> Document:
        """The content of the page.

        Where no font has the letters of its language, figures have English labels.

        Raises:
            ValueError: no run has the name of the baseline.
        """
        _ = translator(self.lang)
        label = _ if can_show(_(NO_FONT)) else translator("en")
        opening, others = self.opening, self._others
        document = Document(_(opening.title if opening else OWN_TITLE), self.lang)
        if others and not opening:
            found = contests(others) if self._shown else self.contests
            own_runs(document, found, others, _, label)
        for study, _own in self._shown:
            if study is opening:
                study.part(document, self.runs, _, label)
                continue
            document.fold(_(study.title))
            study.part(document, self.runs, _, label)
            document.unfold()
        document.text(*map(quoted, self.changed(_)))
        if opening:
            for title, chosen in (
                (_("Failed and unfinished runs"), [run for run in self.runs if not run.is_done]),
                (_("Other runs"), [run for run in others if run.is_done]),
            ):
                if chosen:
                    document.fold(f"{title} ({len(chosen)})")
                    runs_table(document, chosen, _)
                    document.unfold()
        _origin(document, self.runs, opening, _)
        if document.figures and label is not _:
            document.text(_(NO_FONT))
        return document


def _origin(document: Document, runs: Sequence[Run], opening: Study | None, _: Translate) -> None:
    """The commands, revisions and time that made the page."""
    document.fold(_("How this page was made"))
    sweep = f"`python -m newllm.train sweep={opening.name}`, " if opening else ""
    revisions = Counter(quoted(run.result.get("git_revision") or "-")[:12] for run in runs)
    seconds = sum(run.result.get("seconds") or 0.0 for run in runs)
    threads = sorted({quoted(run.result["threads"]) for run in runs if run.is_known})
    by_revision = _("{num_runs} runs at revision {revision}")
    document.text(
        f"{sweep}`python -m newllm.report`",
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
