"""Spikes in the report: the four traits of the series, and the spikes of each experiment."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from newllm.reporting.document import Document, quoted
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run
from newllm.statistics.spikes import BUMP, Spike, find_spikes
from newllm.studies.series import figures as series_figures
from newllm.studies.series.results import Summary, published

DEFINITION = (
    "Validation losses by step and by epoch are means over tokens. A spike rises and falls by "
    "at least a quarter. Only the largest spike of each run is counted. Values are medians, "
    "with the range over runs."
)
HIDDEN_RISE = (
    "The final experiment shows no spike by epoch. By step, its loss still rises early in "
    "training: at step {step} it is {ratio} times its value five steps before. Its validation "
    "loss is measured every five steps, which may miss the peak itself."
)


def spike_study(
    document: Document, summaries: Sequence[Summary], _: Translate, label: Translate
) -> None:
    """Add the traits, a row for each experiment, and the published spikes beside ours."""
    document.fold(_("Spikes: the four traits"))
    document.text(_(DEFINITION))
    document.table(
        [_(word) for word in ("trait", "what the runs show")],
        [[_(trait), shown] for trait, shown in _traits(summaries, _)],
    )
    _by_experiment(document, summaries, _)
    by_name = {summary.name: summary for summary in summaries}
    if bumps := _bumps(by_name["phase5_final_exp1"].done):
        document.text(
            _(HIDDEN_RISE).format(
                ratio=_median_and_range([bump.steepest for bump in bumps]),
                step=_median_and_range([bump.peak for bump in bumps]),
            )
        )
    _published_beside_ours(document, by_name, _, label)
    document.unfold()


def _by_experiment(document: Document, summaries: Sequence[Summary], _: Translate) -> None:
    """The largest spikes of the runs of each experiment."""
    words = ("experiment", "runs with a spike", "onset (step)", "peak over level",
             "steps to recovery", "share of <UNK> in the rise", "onset (epoch)")  # fmt: skip
    rows = []
    for summary in summaries:
        watched = _watched(summary.done)
        if not watched:
            continue
        steps = _largest(watched, "val_by_step")
        epochs = _largest(summary.done, "val_by_epoch")
        rows.append(
            [
                summary.name,
                f"{len(steps)}/{len(watched)}",
                _median_and_range([spike["onset"] for spike in steps]),
                _median_and_range([spike["ratio"] for spike in steps]),
                _median_and_range([s["duration"] for s in steps if s["duration"] is not None]),
                _median_and_range([100 * spike["unk"] for spike in steps], " %"),
                _median_and_range([spike["onset"] for spike in epochs]),
            ]
        )
    document.table([quoted(_(word)) for word in words], rows)


def _published_beside_ours(
    document: Document, by_name: Mapping[str, Summary], _: Translate, label: Translate
) -> None:
    """The peaks that are told without a curve, and the curves that are."""
    document.text(f"**{_('Published and reproduced spikes')}**")
    document.table(
        [_(word) for word in ("experiment", "reported", "reproduced")],
        [
            [
                entry["name"],
                f"{entry['height']:g} ({entry['epoch']})",
                _peaks(by_name[entry["name"]]),
            ]
            for entry in published()["peak"]
        ],
    )
    kinds = {
        "unk": label("<UNK> targets"),
        "eos": label("<EOS> targets"),
        "other": label("other targets"),
    }
    words = {
        "epoch": label("epoch"),
        "step": label("step"),
        "loss": label("validation loss (nats per token)"),
        "published": label("published"),
        "each": label("reproduced, each seed"),
    }
    figure = series_figures.spikes(list(by_name.values()), words, kinds)
    document.figure("spikes", figure, _("Published and reproduced spikes"))


def _bumps(runs: Sequence[Run]) -> list[Spike]:
    """Of each run's validation loss by step the largest rise, too small for a spike or not."""
    found = [
        find_spikes(
            [row["step"] for row in run.looks], [row["val/loss"] for row in run.looks], BUMP
        )
        for run in runs
    ]
    return [max(bumps, key=lambda bump: bump.steepest) for bumps in found if bumps]


def _peaks(summary: Summary) -> str:
    """Of each run the highest peak by epoch and its epoch, such as `8.1 (17), 7.9 (16)`."""
    found = _largest(summary.done, "val_by_epoch")
    return ", ".join(f"{spike['height']:.3g} ({spike['peak']:g})" for spike in found) or "-"


def _traits(summaries: Sequence[Summary], _: Translate) -> list[tuple[str, str]]:
    """The four traits of the summary, by the runs on 30 sentences."""
    runs = [run for s in summaries for run in _watched(s.done) if run.result["corpus"] == "tiny30"]
    steps = _largest(runs, "val_by_step")
    epochs = _largest(runs, "val_by_epoch")
    wide = [run for run in runs if run.result["parameters"] > 10e6]
    narrow = [run for run in runs if run.result["parameters"] < 10e6]

    def rises(chosen: Sequence[Run]) -> list[float]:
        return [spike["ratio"] for spike in _largest(chosen, "val_by_step")]

    healed = sum(spike["recovery"] is not None for spike in steps)
    return [
        (
            "always in the same epochs",
            f"{_('epoch')} {_median_and_range([spike['onset'] for spike in epochs])}, "
            f"{_('step')} {_median_and_range([spike['onset'] for spike in steps])}",
        ),
        (
            "factor of two to nine in one epoch",
            f"{_('epoch')}: x{_median_and_range([spike['steepest'] for spike in epochs])}; "
            f"{_('step')}: x{_median_and_range([spike['steepest'] for spike in steps])}",
        ),
        ("recovers by itself", f"{healed}/{len(steps)}"),
        (
            "worse for larger models",
            f"&lt;10M: {len(rises(narrow))}/{len(narrow)}, x{_median_and_range(rises(narrow))}; "
            f"&gt;10M: {len(rises(wide))}/{len(wide)}, x{_median_and_range(rises(wide))}",
        ),
    ]


def _watched(runs: Sequence[Run]) -> list[Run]:
    """Runs with validation losses by step; spikes of others are not known."""
    return [run for run in runs if run.was_watched("val_by_step")]


def _largest(runs: Sequence[Run], curve: str) -> list[dict[str, Any]]:
    """The largest spike of each run that has one."""
    return [spike for run in runs if (spike := run.largest_spike(curve))]


def _median_and_range(values: Sequence[float], unit: str = "") -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.3g}{unit} ({min(values):.3g}-{max(values):.3g})"
