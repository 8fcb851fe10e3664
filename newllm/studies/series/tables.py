"""The tables that set the published series beside its reproduction."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from newllm.reporting.document import Document
from newllm.reporting.formatting import plus_minus
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run, is_of
from newllm.statistics.intervals import mean_interval
from newllm.studies.series.results import (
    SPREAD_OF_ONE_RUN,
    Summary,
    derived,
    other_figures,
    published,
)

DEFINITION = (
    "Losses are best validation losses by the definition of the series (mean over batches of "
    "16 sentences), in nats per token: mean and 95 % interval over seeds."
)
RULE_OF_AGREEMENT = (
    "A reported loss comes from one run. With three or more runs of ours, it agrees if it lies "
    "in the 95 % prediction interval of a further run, which for n runs is sqrt(n + 1) times "
    "as wide as the printed interval of the mean (4.6 times for 20 runs). It also agrees if it "
    "lies within {spread} nats of our mean, since equivalent runs of the series differ by as "
    "much. Otherwise it differs."
)
# What stands beside the final experiment, and the references that do.
SIDE = {
    (None, "phase5_final_exp1"): "final experiment, reproduced",
    ("claims", "isolated_transformer"): "causal Transformer with the original size and recipe",
    (None, "modern"): "same architecture with the modern recipe, at a twentieth of the size",
}
REFERENCES = {
    "bigram": "bigram counts",
    "trigram": "trigram counts",
    "grammar_known": "grammar known, probabilities estimated",
    "oracle": "the grammar itself",
}
DEFINITION_OF_PERSPECTIVE = (
    "Best validation losses, averaged over tokens, in nats, with 95 % intervals over seeds. "
    "The published loss is a mean over batches of 16 sentences from the original grammar."
)


def _reported(summary: Summary) -> str:
    if summary.reported is None:
        return "-"
    return f"~{summary.reported:g}" if summary.is_approximate else f"{summary.reported:.4f}"


def _verdict_word(summary: Summary, _: Translate) -> str:
    word = _(summary.verdict)
    return f"{word}; {_('void: sees the future')}" if summary.is_void else word


def perspective_table(
    document: Document, runs: Sequence[Run], final: Summary, _: Translate
) -> None:
    """The final experiment's loss among others on the same validation sentences, worst first."""
    groups = {
        (study, name): [run for run in runs if run.is_done and is_of(run, name, study)]
        for study, name in SIDE
    }
    known = [run.result["references"] for group in groups.values() for run in group]
    references: Mapping[str, float] = max(known, key=len, default={})
    rows = []  # the loss, and the row with it
    if final.reported is not None:
        rows.append((final.reported, [_("final experiment, as published"), _reported(final), "1"]))
    for (study, name), group in groups.items():
        if group:
            loss = mean_interval([run.result["best_val_loss"] for run in group])
            rows.append(
                (
                    loss.mean,
                    [f"{_(SIDE[study, name])} (`{name}`)", plus_minus(loss), str(len(group))],
                )
            )
    for name, text in REFERENCES.items():
        if name in references:
            rows.append((references[name], [_(text), f"{references[name]:.4f}", ""]))
    document.table(
        [_(word) for word in ("on the final experiment's validation sentences", "loss", "runs")],
        [row for _loss, row in sorted(rows, reverse=True)],
    )
    document.text(_(DEFINITION_OF_PERSPECTIVE))


def all_experiments(document: Document, summaries: Sequence[Summary], _: Translate) -> None:
    """Every experiment with all its columns."""
    document.fold(_("All experiments"))
    document.text(_(DEFINITION), _(RULE_OF_AGREEMENT).format(spread=SPREAD_OF_ONE_RUN))
    words = ("experiment", "parameters", "equal", "reported", "reproduced", "runs", "best epoch",
             "reported epoch", "spikes by step", "spikes by epoch", "verdict",
             "command")  # fmt: skip
    document.table([_(word) for word in words], [_row(summary, _) for summary in summaries])
    document.unfold()


def _row(summary: Summary, _: Translate) -> list[str]:
    parameters = summary.parameters
    epochs = summary.best_epochs
    middle = f"{statistics.median(epochs):g} ({epochs[0]}-{epochs[-1]})" if epochs else "-"
    not_done = len(summary.runs) - len(summary.done)
    return [
        summary.name,
        "-" if parameters is None else f"{parameters:,}",
        _equal(parameters, summary.reported_parameters, _),
        _reported(summary),
        plus_minus(summary.loss),
        f"{len(summary.done)}" + (f", {not_done} {_('not done')}" if not_done else ""),
        middle,
        str(summary.reported_epoch or "-"),
        _spiked(summary, "val_by_step"),
        _spiked(summary, "val_by_epoch"),
        _verdict_word(summary, _),
        f"`python -m newllm.train -m experiment={summary.name} seed=1,2,3`",
    ]


def _equal(ours: int | None, reported: int | None, _: Translate) -> str:
    return "-" if ours is None or reported is None else _("yes" if ours == reported else "no")


def _spiked(summary: Summary, curve: str) -> str:
    """In how many of the runs that were watched, and how high at most, such as `3/5 (2.1x)`."""
    watched = [run for run in summary.done if run.was_watched(curve)]
    if not watched:
        return "-"
    found = [spike for run in watched if (spike := run.largest_spike(curve))]
    highest = f" ({max(spike['ratio'] for spike in found):.1f}x)" if found else ""
    return f"{len(found)}/{len(watched)}{highest}"


def timeline(document: Document, summaries: Sequence[Summary], _: Translate) -> None:
    """What was changed in each experiment, phase by phase, and what the best loss became."""
    document.fold(_("Timeline"))
    words = ("phase", "experiment", "what was changed", "reported", "reproduced")
    document.table(
        [_(word) for word in words],
        [
            [str(s.phase or "-"), s.name, _(s.change), _reported(s), plus_minus(s.loss)]
            for s in summaries
        ],
    )
    document.unfold()


def derived_table(document: Document, summaries: Sequence[Summary], _: Translate) -> None:
    """The percentages that the series prints: claimed, from its own losses, and from ours."""
    document.fold(_("Percentages of the summary, recomputed"))
    words = ("comparison", "experiment", "claimed", "from its own losses", "from ours", "slip")
    document.table(
        [_(word) for word in words],
        [
            [
                row.table,
                row.name,
                f"{row.claimed:+g} %",
                _percent(row.from_reported),
                _percent(row.reproduced),
                _("yes") if row.is_slip else "",
            ]
            for row in derived(summaries)
        ],
    )
    document.unfold()


def figures_table(document: Document, _: Translate) -> None:
    """The other figures that the series prints, computed anew."""
    document.fold(_("Other figures of the summary, recomputed"))
    document.table(
        [_(word) for word in ("figure", "claimed", "computed", "slip")],
        [
            [row.what, f"{row.claimed:g}", f"{row.computed:,.2f}", _("yes") if row.is_slip else ""]
            for row in other_figures()
        ],
    )
    document.unfold()


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f} %"


def ratio_table(document: Document, summaries: Sequence[Summary], _: Translate) -> None:
    """Parameters per training sentence, claimed and by division."""
    document.fold(_("Parameters per training sentence"))
    by_name = {summary.name: summary for summary in summaries}
    rows = []
    for entry in published()["ratio"]:
        parameters = by_name[entry["name"]].parameters
        ours = None if parameters is None else parameters / _train_sentences(entry["name"])
        is_slip = ours is not None and abs(ours - entry["claimed"]) > 1
        rows.append(
            [
                entry["name"],
                f"{entry['claimed']:,}",
                "-" if ours is None else f"{ours:,.0f}",
                _("yes") if is_slip else "",
            ]
        )
    words = ("experiment", "claimed", "by division", "slip")
    document.table([_(word) for word in words], rows)
    document.unfold()


def _train_sentences(experiment: str) -> int:
    if "augmentation" in experiment:
        return 99
    return 400 if "final" in experiment else 24
