"""The published series beside its reproduction: the page of the report that it opens."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from newllm.reporting.document import Document
from newllm.reporting.formatting import plus_minus
from newllm.reporting.page import Study
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run
from newllm.studies.series import figures
from newllm.studies.series.results import Summary, summarize
from newllm.studies.series.spikes import spike_study
from newllm.studies.series.tables import (
    all_experiments,
    derived_table,
    figures_table,
    perspective_table,
    ratio_table,
    timeline,
)

DEFINITION_OF_CURVES = (
    "Validation losses are means over batches of 16 sentences, as in the series. Horizontal "
    "lines show the best reported loss, unigram and bigram counts, and the oracle."
)


def own_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs of its experiments without any change."""
    return [run for summary in summarize(runs) for run in summary.runs]


def published_series(
    document: Document, runs: Sequence[Run], _: Translate, label: Translate
) -> None:
    """Add a verdict, a figure and a table, and folded parts."""
    summaries = summarize(runs)
    document.text(*_verdict(summaries, _))
    overview = figures.overview(
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
    timeline(document, summaries, _)
    derived_table(document, summaries, _)
    figures_table(document, _)
    ratio_table(document, summaries, _)
    spike_study(document, summaries, _, label)
    _curves(document, summaries, _, label)


def _curves(
    document: Document, summaries: Sequence[Summary], _: Translate, label: Translate
) -> None:
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
    document.figure("curves", figures.curve_grid(summaries, words), _("Curves of all runs"))
    document.unfold()


def _verdict(summaries: Sequence[Summary], _: Translate) -> list[str]:
    """Three sentences."""
    verdicts = [summary.verdict for summary in summaries]
    agree, differ = verdicts.count("agrees"), verdicts.count("differs")
    sentences = [
        _(
            "{agree} of the {compared} comparable results agree with the reported ones (the "
            "reported loss is within the prediction interval of a further run), {differ} do "
            "not. The published Transformer baseline sees the future, so every comparison with "
            "it is void."
        ).format(agree=agree, compared=agree + differ, differ=differ)
    ]
    final = next(summary for summary in summaries if summary.name == "phase5_final_exp1")
    if final.loss:
        references = final.done[0].result["references"]
        mean = statistics.fmean(run.result["best_val_loss"] for run in final.done)
        relation = (
            "The final result (reported {reported}, reproduced {mean}) is worse than bigram "
            "counts on the same sentences ({bigram}). The loss of the grammar that generated "
            "them is {oracle}."
            if mean > references["bigram"]
            else (
                "The final result (reported {reported}, reproduced {mean}) is better than "
                "bigram counts on the same sentences ({bigram}). The loss of the grammar that "
                "generated them is {oracle}."
            )
        )
        sentences.append(
            _(relation).format(
                reported=final.reported,
                mean=plus_minus(final.loss),
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
                "On 30 sentences, {num_spiked} of {num_runs} runs have a spike in their "
                "validation loss by step. The median onset of the largest spike of each run is "
                "step {onset}."
            ).format(
                num_spiked=len(onsets), num_runs=len(small), onset=f"{statistics.median(onsets):g}"
            )
        )
    else:
        sentences.append(_("No run on 30 sentences was found, so spikes were not analysed."))
    return [" ".join(sentences)]


STUDY = Study(
    "series",
    title="The series, reproduced",
    place=0,
    own=own_runs,
    part=published_series,
    opens=True,
)
