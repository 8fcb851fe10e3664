"""State tracking: which runs are its results, what they solve, and the report's part of it."""

import math
from pathlib import Path

import pytest
from conftest import strict_translator
from records import record

from newllm.config.study_file import variants_of
from newllm.reporting.formatting import percent_at_least
from newllm.reporting.models import NAMES
from newllm.reporting.page import Page
from newllm.reporting.translation import LANGUAGES
from newllm.runs.gathering import Run, gather, pack
from newllm.statistics.trials import purpose
from newllm.studies import found_studies
from newllm.studies.state_tracking import DEFINITIONS, own_runs
from newllm.studies.state_tracking.results import NAME, TASKS, entries

ANSWERS = {"parity": 2, "s3": 6, "regular": 8}
RATES = {"t01": "0.001", "t02": "0.002", "t03": "0.004"}
Accuracies = tuple[float, ...]  # at the training length and at `LENGTHS`
TRAINED, LENGTHS = 40, (64, 128, 2048)


def make_run(
    variant: str,
    trial: str,
    seed: int,
    val: float | None = 0.1,
    accuracies: Accuracies | None = None,
    **choices: str,
) -> Run:
    """A trial, or a run that was tested, which diverged if it has no loss."""
    lines = [f"data.lengths=[2,{TRAINED}]", f"optimizer.lr={RATES[trial]}", f"trial={trial}"]
    made = record(
        variant,
        *lines,
        *(f"{k}={v}" for k, v in choices.items()),
        study="state_tracking",
        seed=seed,
    )
    name = " ".join(made["overrides"])
    splits = ["test", *(f"length_{length}" for length in LENGTHS)]
    task = variant.partition("_")[0]
    result = {
        "status": "done" if val else "diverged", **made, "best_val_loss": val, "best_epoch": 3,
        "evaluation": accuracies and {
            split: {"loss": 0.1, "accuracy": share, "accuracy_sequence": share**2}
            for split, share in zip(splits, accuracies, strict=True)
        },
        "references": {"guess": math.log(ANSWERS[task])}, "parameters": 50_000, "name": "a model",
        "state_bytes": 512, "corpus": task, "threads": 1, "config_hash": name,
    }  # fmt: skip
    return Run(f"runs/{name}", result)


def model(variant: str, *runs: Accuracies | None) -> list[Run]:
    """Three trials, of which the second is the best, and its runs with other seeds."""
    losses = zip(RATES, (0.3, 0.1, 0.2), strict=True)
    trials = [
        make_run(variant, trial, 1, loss, (0.5,) * (1 + len(LENGTHS))) for trial, loss in losses
    ]
    finals = [
        make_run(variant, "t02", seed, 0.1 if accuracies else None, accuracies)
        for seed, accuracies in enumerate(runs, 2)
    ]
    return trials + finals


PERFECT = (1.0,) * 4
RUNS = [
    *model("parity_gated", PERFECT, PERFECT, (1.0, 1.0, 1.0, 0.9995)),
    *model("parity_lstm", PERFECT, (1.0, 0.998, 1.0, 1.0), None),
    *model("parity_transformer_learned", (1.0, 0.9, 0.7, 0.5), (1.0, 0.8, 0.6, 0.4)),
    *model("s3_gated", (1.0, 1.0, 0.5, 0.1)),
    *model("regular_gated")[:3],
    *[
        make_run("regular_gated", "t02", 2, 0.1, PERFECT, **{"data.automaton_seed": f"{n}"})
        for n in (1, 2)
    ],
]


def test_results_are_the_later_runs_of_the_best_trial() -> None:
    gated, learned, lstm, s3, regular = entries(RUNS)
    assert (gated.task, gated.model, gated.trial.chose("optimizer.lr")) == (
        "parity", "gated", "0.002"
    )  # fmt: skip
    assert (learned.task, learned.model) == ("parity", "transformer_learned")
    assert (s3.guessing, s3.longest_trained, s3.lengths) == (
        pytest.approx(1 / 6), TRAINED, {TRAINED, *LENGTHS}
    )  # fmt: skip
    assert gated.values(2048) == [1.0, 1.0, 0.9995]
    assert (gated.num_solved, len(gated.runs)) == (3, 3)
    # One is below the limit at one length, and one diverged.
    assert (lstm.num_solved, len(lstm.runs)) == (1, 3)
    accuracy = learned.accuracy(64)
    assert accuracy is not None
    assert accuracy.mean == pytest.approx(0.85)
    assert accuracy.half_width == pytest.approx(0.05 * 12.706, rel=1e-4)  # t for one degree
    assert (regular.num_solved, len(regular.runs)) == (2, 2)


def test_other_runs_are_none_of_it() -> None:
    others = [
        make_run("parity_gated", "t01", 2, 0.1, PERFECT),  # not of the best trial
        make_run("parity_gated", "t02", 2, 0.1, PERFECT, **{"data.evaluation_rows": "4"}),
        make_run("parity_gated", "t02", 2, 0.1, PERFECT, name="mine"),
        *model("s3_lstm")[:3],  # without a later run
    ]
    assert [purpose(NAME, run) for run in others] == ["again", None, None, *["trial"] * 3]
    assert entries([*RUNS, *others]) == entries(RUNS)
    assert [*map(id, own_runs([*RUNS, *others]))] == [*map(id, [*RUNS, others[0]])]


def test_every_variant_has_words_and_training_lengths() -> None:
    for name, lines in variants_of("state_tracking").items():
        task, _, model_name = name.partition("_")
        assert task in TASKS.keys() & DEFINITIONS.keys()
        assert model_name in NAMES
        assert any(line.startswith("data.lengths=[") for line in lines)


def test_a_share_is_rounded_down() -> None:
    assert [percent_at_least(share) for share in (0.0, 0.5, 0.99996, 1.0)] == [
        "0.0", "50.0", "99.9", "100"
    ]  # fmt: skip


def test_what_was_not_tested_is_empty(tmp_path: Path) -> None:
    """One model diverged, another was tested beyond the training length alone."""
    runs = model("s3_lstm", None, None) + model("s3_gated", PERFECT)
    del runs[-1].result["evaluation"]["test"]
    lstm, gated = entries(runs)[::-1]
    assert (lstm.num_solved, lstm.accuracy(64), gated.accuracy(TRAINED)) == (0, None, None)
    page = Page(runs, found_studies()).compose()
    page.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| 0.002 | - | - | - | - | 0 of 2, 2 diverged |" in text
    assert "| 0.002 | - | 100 / 100 | 100 / 100 | 100 | 1 of 1 |" in text


@pytest.mark.usefixtures("every_word")
@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_report_shows_it(tmp_path: Path, lang: str) -> None:
    pack(RUNS, tmp_path / "state_tracking.json.gz")
    runs = gather([tmp_path / "state_tracking.json.gz"])
    page = Page(runs, found_studies(), lang=lang).compose()
    page.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    _ = strict_translator(lang)
    parity = text.partition(f"### {_('parity')}\n")[2].partition("### ")[0]
    names = {name: _(words) for name, words in NAMES.items()}
    for sentence, name in (
        ("Solved in all runs: {models}.", "gated"),
        ("Solved in some runs: {models}.", "lstm"),
        ("Solved in no run: {models}.", "transformer_learned"),
    ):
        assert _(sentence).format(models=names[name]) in parity
    rows = {line.split(" | ")[0]: line for line in parity.splitlines()}
    row = rows[f"| {names['lstm']}"]
    assert "| 50,000 | 512 | 0.002 | 100 / 100 | 100 / 100 | 100 / 100 | 100 &plusmn; 0.0 |" in row
    assert f"{_('{number} of {most}').format(number=1, most=3)}, 1 {_('diverged')}" in row
    assert (
        "100 / 100 | 60.0 / 36.0 | 40.0 / 16.0 | 45.0" in rows[f"| {names['transformer_learned']}"]
    )
    drawn = [t.get_text() for t in page.figures["state_tracking.png"].axes[0].texts]
    assert drawn.count("99.9") == 2  # the mean of the gated model at 2,048, of the LSTM at 64
    if lang != "en":  # English needs no words
        texts = {*NAMES.values(), *TASKS.values(), *DEFINITIONS.values()}
        assert len({_(words) for words in texts}) == len(texts)
