"""Models at equal cost, tuned alike: the context model beside the others."""

from __future__ import annotations

from collections.abc import Sequence

from newllm.reporting.document import Document, quoted
from newllm.reporting.formatting import number, signed, with_count
from newllm.reporting.page import Study
from newllm.reporting.translation import Translate
from newllm.runs.gathering import Run
from newllm.studies.fair.figures import fair
from newllm.studies.fair.results import (
    MODELS,
    NAME,
    SETTINGS,
    SIZES,
    Contestant,
    contestants,
    differences,
    purpose,
)

DEFINITION = (
    "At equal parameters every model gets the same {trials} trials, drawn at random and committed "
    "before any was run: layers, learning rate, weight decay and three dropouts; epochs (40), "
    "batches and schedule are those of the modern recipe, which was made for the context model; so "
    "is the initialisation, but for the recurrent layers of LSTM, GRU and Elman. The best trial by "
    "validation loss is trained anew and tested: with five other seeds; at 0.2 million parameters "
    "on five redrawn corpora, and for 120 epochs, since some models are still at their best in the "
    "last one; at 0.7 million on 10,000 sentences instead of 400, for 8 epochs. A gap is a test "
    "loss above that of the grammar on the same sentences, in nats per token: mean and 95 % "
    "interval, given that trial. State: what a sequence's memory takes after 32 tokens (float32)."
)
DEFINITION_OF_DIFFERENCES = (
    "The context model's gap minus the other model's, in pairs of the same seed (which see the "
    "same batches) or the same corpus, with 95 % intervals; below zero the context model is "
    "better. Student's test of the pairs and the equivalence test of the claims, Holm's correction "
    "over the whole table; certainly less than 0.05 nats is no effect."
)
CAPTION = (
    "Left: what a search of so many of the trials finds on average. Right: gap of the best trial "
    "on the test sentences, by the size of the state."
)


def own_runs(runs: Sequence[Run]) -> list[Run]:
    """The trials, and the final runs of models that have trials."""
    found = {f"{contestant.model}_{contestant.size}" for contestant in contestants(runs)}
    return [run for run in runs if run.known_as in found and purpose(run)]


def fair_comparison(
    document: Document, runs: Sequence[Run], _: Translate, label: Translate
) -> None:
    """Add the tables and the figure."""
    found = contestants(runs)
    numbers = sorted({len(contestant.trials) for contestant in found})
    trials = "-".join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))
    document.text(_(DEFINITION).format(trials=trials))
    words = {
        "trials": label("trials"),
        "best": label("validation loss above the grammar's (nats)"),
        "bytes": label("state (bytes)"),
        "gap": label("test loss above the grammar's (nats)"),
        "interval": label("95 % interval of the mean"),
        **{key: label(text) for key, text in (SIZES | MODELS).items()},
    }
    document.figure("fair", fair(found, words), _(CAPTION))
    for size, text in SIZES.items():
        if of_size := [contestant for contestant in found if contestant.size == size]:
            document.text(f"### {_(text)}")
            _contestants_table(document, of_size, _)
    _differences_table(document, found, _)


def _contestants_table(document: Document, found: Sequence[Contestant], _: Translate) -> None:
    """The models of one size, with a gap for each setting."""
    settings = [name for name in SETTINGS if any(contestant.gap(name) for contestant in found)]
    headings = ("model", "chosen", "parameters", "state", "best trial", "validation loss",
                "trials at their best in the last epoch")  # fmt: skip
    document.table(
        [_(word) for word in (*headings, *(f"gap, {SETTINGS[name]}" for name in settings))],
        [_row(contestant, settings, _) for contestant in found],
    )


def _row(contestant: Contestant, settings: Sequence[str], _: Translate) -> list[str]:
    result, trial = contestant.chosen.result, contestant.best_trial
    return [
        _(MODELS[contestant.model]),
        quoted(result["name"]),
        f"{result['parameters']:,}",
        f"{result['state_bytes']:,}",
        trial,
        number(contestant.losses[trial]),
        f"{contestant.num_unfinished} / {len(contestant.trials)}",
        *(_gap(contestant, name, _) for name in settings),
    ]


def _gap(contestant: Contestant, setting: str, _: Translate) -> str:
    """The mean over the runs that did not diverge, and the number of those that did."""
    diverged = contestant.num_diverged(setting)
    return with_count(contestant.gap(setting)) + (f", {diverged} {_('diverged')}" * bool(diverged))


def _differences_table(document: Document, found: Sequence[Contestant], _: Translate) -> None:
    rows = [
        [
            _(SIZES[difference.size]),
            _(SETTINGS[difference.setting]),
            _(MODELS[difference.other]),
            signed(difference.comparison.interval),
            str(difference.comparison.interval.num_runs),
            _(difference.verdict),
        ]
        for difference in differences(found)
    ]
    if rows:
        document.text(f"### {_('Differences')}", _(DEFINITION_OF_DIFFERENCES))
        words = ("size", "setting", "against", "difference", "pairs", "verdict")
        document.table([_(word) for word in words], rows)


STUDY = Study(NAME, title="A fair comparison", place=3, own=own_runs, part=fair_comparison)
