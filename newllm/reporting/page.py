"""The page of a series: a verdict, one figure, one table; the rest folded below."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from newllm.reporting.document import Document, quoted
from newllm.reporting.drawing import can_show
from newllm.reporting.own_runs import own_runs
from newllm.reporting.run_tables import runs_table
from newllm.reporting.translation import Translate, translator
from newllm.runs.gathering import Run
from newllm.statistics.comparisons import Contest, contests
from newllm.studies.claims import is_evidence, judge
from newllm.studies.fair.part import fair_comparison
from newllm.studies.fair.results import purpose
from newllm.studies.ladder.effects import is_rung
from newllm.studies.ladder.part import ladder_effects
from newllm.studies.scaling.law import point_of
from newllm.studies.scaling.part import scaling_law
from newllm.studies.series import figures as series_figures
from newllm.studies.series.results import Summary, summarize
from newllm.studies.series.spikes import spike_study
from newllm.studies.series.tables import (
    all_experiments,
    claims_table,
    derived_table,
    figures_table,
    interval,
    perspective_table,
    ratio_table,
    timeline,
)

TITLE = "The series, reproduced"
OWN_TITLE = "Runs side by side"

NO_FONT = "Figures are in English: no font of this machine has the letters of this page."

DEFINITION_OF_CURVES = (
    "Validation losses are means over batches of 16 sentences, as the series counted them; "
    "horizontal lines are the reported best, unigram and bigram counts, and the oracle."
)


def write_report(
    runs: Sequence[Run],
    folder: Path,
    lang: str = "en",
    baseline: str | None = None,
    found: Sequence[Contest] | None = None,
) -> Path:
    """Write `report.md`, `index.html` and figures into a folder; returns the page's place.

    Args:
        runs: a page of the series if any is of it and no baseline is given, else of these runs.
        folder: of the page.
        lang: one of `LANGUAGES`.
        baseline: what other groups of runs are compared with, as in `contests`.
        found: `contests(runs, baseline)`, where they are known already.

    Raises:
        ValueError: there is no such baseline; nothing was written.
    """
    document = _compose(runs, folder, lang, baseline, found)
    document.write_markdown(folder / "report.md")
    title = TITLE if is_of_series(runs) and baseline is None else OWN_TITLE
    return document.write_html(folder / "index.html", translator(lang)(title), lang)


def write_markdown(
    runs: Sequence[Run],
    path: Path,
    lang: str = "en",
    baseline: str | None = None,
    found: Sequence[Contest] | None = None,
) -> Path:
    """Write the page as one file of Markdown, its figures into a folder named like it."""
    return _compose(runs, path.with_suffix(""), lang, baseline, found).write_markdown(path)


def is_of_series(runs: Sequence[Run]) -> bool:
    """Whether any run is of the published series."""
    return any(summary.runs for summary in summarize(runs))


def _compose(
    runs: Sequence[Run],
    folder: Path,
    lang: str,
    baseline: str | None,
    found: Sequence[Contest] | None,
) -> Document:
    """The whole page; where no font has the letters, figures keep their English words."""
    own = [run for run in runs if baseline is not None or not is_of_study(run)]
    is_own = baseline is not None or not is_of_series(runs)
    if is_own and (found is None or len(own) < len(runs)):
        found = contests(own, baseline)
    folder.mkdir(parents=True, exist_ok=True)
    document, _ = Document(folder), translator(lang)
    label = _ if can_show(_(NO_FONT)) else translator("en")
    if is_own:
        document.text(f"# {_(OWN_TITLE)}")
        if found:
            own_runs(document, found, own, _, label)
        _studies(document, runs, _, label)
        _origin(document, runs, "`python -m newllm.report`", _)
    else:
        _series(document, runs, _, label)
    if document.figures and label is not _:
        document.text(_(NO_FONT))
    return document


def _series(document: Document, runs: Sequence[Run], _: Translate, label: Translate) -> None:
    """The page of the published series."""
    summaries = summarize(runs)
    document.text(f"# {_(TITLE)}", *_verdict(summaries, _))
    overview = series_figures.overview(
        summaries,
        label("reported best loss"),
        label("reproduced, each seed"),
        label("reproduced, mean"),
        label("best validation loss (nats per token)"),
    )
    caption = _(
        "Every experiment in the order of the series, reported and reproduced. Losses on different "
        "corpora cannot be compared."
    )
    document.figure("overview", overview, caption)
    final = next(summary for summary in summaries if summary.name == "phase5_final_exp1")
    perspective_table(document, runs, final, _)
    all_experiments(document, summaries, _)
    judgements = judge(runs)
    claims_table(document, judgements, _)
    _studies(document, runs, _, label)
    timeline(document, summaries, _)
    derived_table(document, summaries, _)
    figures_table(document, _)
    ratio_table(document, summaries, _)
    spike_study(document, summaries, _, label)
    document.fold(_("Curves of all runs"))
    document.text(_(DEFINITION_OF_CURVES))
    words = {
        "epoch": label("epoch"),
        "loss": label("validation loss (nats per token)"),
        "train": label("train"),
        "validation": label("validation"),
        "reported": label("reported best loss"),
        "counts": label("unigram and bigram counts"),
        "oracle": label("oracle"),
    }
    document.figure("curves", series_figures.curve_grid(summaries, words), _("Curves of all runs"))
    document.unfold()
    shown = {id(run) for summary in summaries for run in summary.done}
    shown |= {id(run) for run in runs if is_evidence(run, judgements)}
    _other_runs(document, [run for run in runs if id(run) not in shown], _)
    _origin(document, runs, "`python -m newllm.train sweep=all`, `python -m newllm.report`", _)


def _studies(document: Document, runs: Sequence[Run], _: Translate, label: Translate) -> None:
    """What goes beyond the series, as far as it was run."""
    ladder_effects(document, runs, _)
    fair_comparison(document, runs, _, label)
    scaling_law(document, runs, _, label)


def is_of_study(run: Run) -> bool:
    """Whether a run has its place in a study, and so need not stand in a list of runs."""
    return purpose(run) is not None or point_of(run) is not None or is_rung(run)


def _verdict(summaries: Sequence[Summary], _: Translate) -> list[str]:
    """Three sentences."""
    verdicts = [summary.verdict for summary in summaries]
    agree, differ = verdicts.count("agrees"), verdicts.count("differs")
    sentences = [
        _(
            "{agree} of the {compared} results that can be compared come out as reported (a "
            "further run of ours could have had the reported loss), {differ} do not; the published "
            "Transformer baseline sees the future, so every comparison with it is void."
        ).format(agree=agree, compared=agree + differ, differ=differ)
    ]
    final = next(summary for summary in summaries if summary.name == "phase5_final_exp1")
    if final.loss:
        references = final.done[0].result["references"]
        mean = statistics.fmean(run.result["best_val_loss"] for run in final.done)
        relation = (
            "The final result (reported {reported}, reproduced {mean}) is worse than counting "
            "pairs of words on the same sentences ({bigram}); the grammar that made them scores "
            "{oracle}."
            if mean > references["bigram"]
            else "The final result (reported {reported}, reproduced {mean}) beats counting pairs "
            "of words on the same sentences ({bigram}); the grammar that made them scores {oracle}."
        )
        sentences.append(
            _(relation).format(
                reported=final.reported,
                mean=interval(final),
                bigram=f"{references['bigram']:.3f}",
                oracle=f"{references['oracle']:.3f}",
            )
        )
    else:
        sentences.append(_("The final result has not been reproduced here."))
    small = [
        run
        for s in summaries
        for run in s.done
        if run.result["corpus"] == "tiny30" and run.was_watched("val_by_step")
    ]
    onsets = [s["onset"] for run in small if (s := run.largest_spike("val_by_step"))]
    if small and onsets:
        sentences.append(
            _(
                "On 30 sentences {num_spiked} of {num_runs} runs have a spike in their validation "
                "loss by step; the largest of each begins at step {onset} in the median."
            ).format(
                num_spiked=len(onsets), num_runs=len(small), onset=f"{statistics.median(onsets):g}"
            )
        )
    else:
        sentences.append(_("No run on 30 sentences was found to look for spikes in."))
    return [" ".join(sentences)]


def _other_runs(document: Document, runs: Sequence[Run], _: Translate) -> None:
    """Those that have no place of their own."""
    ended_badly = [run for run in runs if not run.is_done]
    others = [run for run in runs if run.is_done and not is_of_study(run)]
    for title, chosen in (
        (_("Failed and unfinished runs"), ended_badly),
        (_("Other runs"), others),
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
        _("{runs}; {minutes} minutes of processes with {threads} thread(s) each.").format(
            runs=", ".join(
                by_revision.format(num_runs=number, revision=revision)
                for revision, number in revisions.most_common()
            ),
            minutes=f"{seconds / 60:.0f}",
            threads=", ".join(threads),
        ),
    )
    document.unfold()
