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
    "All models have the same number of parameters and get the same {trials} trials of layers, "
    "learning rate, weight decay and three dropout rates, drawn at random and fixed before any "
    "run. Epochs (40), batches, schedule and initialisation are those of the modern recipe, "
    "which was made for the context model; only the recurrent layers of LSTM, GRU and Elman "
    "keep their own initialisation. The trial with the lowest validation loss is trained again "
    "and tested: with five other seeds; at 0.2 million parameters also on five newly drawn "
    "corpora, and for 120 epochs, since the last epoch is still the best one for some models; "
    "at 0.7 million parameters also on 10,000 sentences instead of 400, for 8 epochs. A gap is "
    "the test loss minus that of the grammar on the same sentences, in nats per token: mean "
    "and 95 % interval, given that trial. State: memory of one sequence after 32 tokens, in "
    "bytes (float32)."
)
DEFINITION_OF_DIFFERENCES = (
    "The gap of the context model minus that of the other model, paired by seed (with the same "
    "batches) or by corpus, with 95 % intervals. Below zero, the context model is better. "
    "Verdicts come from Student's paired t-test and the equivalence test of the claims, with "
    'Holm\'s correction over the whole table. "No effect" means certainly less than 0.05 nats.'
)
CAPTION = (
    "Left: mean best validation loss found with a given number of trials. Right: test gap of "
    "the best trial by size of the state."
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
        "best": label("validation loss above oracle (nats)"),
        "bytes": label("state (bytes)"),
        "gap": label("test loss above oracle (nats)"),
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
                "trials with the last epoch as the best")  # fmt: skip
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
