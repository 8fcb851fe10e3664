"""The fair comparison: who its contestants are, their gaps, and the report's part of it."""

import math
from pathlib import Path

import pytest
from conftest import strict_translator
from records import record

from newllm.config.study_file import then_of, variants_of
from newllm.reporting.page import Page
from newllm.reporting.translation import LANGUAGES
from newllm.runs.gathering import Run, gather, pack
from newllm.studies import found_studies
from newllm.studies.fair.results import (
    MODELS,
    SETTINGS,
    SIZES,
    contestants,
    differences,
    expected_best,
    purpose,
)

ORACLE = 1.5


def make_run(
    model: str, size: str, seed: int, val: float, test: float | None, **choices: str
) -> Run:
    trial = [f"trial={choices.pop('trial')}"] if "trial" in choices else []
    beside = [*trial, *(f"{key}={value}" for key, value in choices.items())]
    made = record(f"{model}_{size}", *beside, study="fair", seed=seed)
    name = " ".join(made["overrides"])
    result = {
        "status": "done", **made, "best_val_loss": val,
        "test_loss": test, "test_oracle_loss": test and ORACLE, "oracle_loss": ORACLE,
        "parameters": 200_000, "corpus": "quality500", "state_bytes": 512, "name": f"{model} L2",
        "threads": 1, "config_hash": name, "epochs": 40,
        "best_epoch": 40 if val == 1.9 else 12, "best_val_loss_batch_mean": val,
        "references": {"unigram": 3.3, "bigram": 2.3},
    }  # fmt: skip
    return Run(f"runs/{name}", result)


def trials(model: str, *losses: float, size: str = "200k") -> list[Run]:
    return [
        make_run(model, size, 1, loss, None, trial=f"t{number:02}")
        for number, loss in enumerate(losses, 1)
    ]


def finals(model: str, trial: str, *tests: float, size: str = "200k", **choices: str) -> list[Run]:
    return [
        make_run(model, size, seed, 1.7, test, trial=trial, **choices)
        for seed, test in enumerate(tests, 2)
    ]


RUNS = [
    *trials("context", 1.9, 1.7, 1.8),
    *trials("lstm", 1.75, 1.95),
    *finals("context", "t02", 1.70, 1.72, 1.71),
    *finals("context", "t01", 9.0),  # not of the best trial
    *finals("lstm", "t01", 1.80, 1.82, 1.83),
    *finals("context", "t02", 1.55, **{"recipe.max_epochs": "120"}),
    *finals("lstm", "t01", 1.51, data="quality12500", **{"recipe.max_epochs": "8"}),
    *[
        make_run("context", "200k", 2, 1.7, 1.6 + 0.01 * n, trial="t02", **{"data.seed": f"{n}"})
        for n in (1, 2, 3)
    ],
]


def test_the_best_trial_is_told_by_validation_and_tested_alone() -> None:
    context, lstm = contestants(RUNS)
    assert (context.model, context.size, context.best_trial) == ("context", "200k", "t02")
    assert context.expected_best == expected_best([1.9, 1.7, 1.8])
    assert context.num_unfinished == 1
    assert list(context.gaps("seeds").values()) == pytest.approx([0.20, 0.22, 0.21])
    assert context.gaps("corpora") == pytest.approx({"1": 0.11, "2": 0.12, "3": 0.13})
    assert context.gap("large") is None
    assert context.gaps("longer") == pytest.approx({"2": 0.05})
    assert lstm.best_trial == "t01"
    assert lstm.gaps("large") == pytest.approx({"2": 0.01})


def test_differences_are_paired_by_seed() -> None:
    (difference,) = differences(contestants(RUNS))
    assert (difference.size, difference.setting, difference.other) == ("200k", "seeds", "lstm")
    assert difference.comparison.interval.mean == pytest.approx((-0.10 - 0.10 - 0.12) / 3)
    assert difference.comparison.interval.num_runs == 3
    assert difference.verdict == "lower"


def test_a_trial_that_diverged_counts_as_the_worst() -> None:
    runs = trials("gru", 1.7, 1.6)
    runs[1].result["status"] = "diverged"
    (gru,) = contestants(runs)
    assert gru.best_trial == "t01"
    assert gru.expected_best == [math.inf, 1.7]


def test_a_final_that_diverged_is_counted_and_has_no_gap() -> None:
    diverged = make_run("lstm", "200k", 9, math.inf, 1.0, trial="t01")
    diverged.result.update({"status": "diverged", "best_val_loss": None, "test_loss": None})
    _, lstm = contestants([diverged, *RUNS])
    assert lstm.best_trial == "t01"
    assert lstm.num_diverged("seeds") == 1
    assert lstm.gaps("seeds").keys() == {"2", "3", "4"}


def test_a_run_under_a_name_of_its_own_is_none_of_it() -> None:
    named = make_run("context", "200k", 1, 1.0, None, trial="t01", name="mine")
    other_seed = make_run("context", "200k", 2, 1.0, None, trial="t01")
    assert contestants([named, other_seed, *RUNS]) == contestants(RUNS)


def test_other_runs_of_the_same_experiments_are_none_of_it() -> None:
    others = [
        *finals("context", "t02", 9.0, data="quality12500"),
        *finals("context", "t02", 9.0, **{"data.seed": "4", "recipe.max_epochs": "3"}),
        *finals("context", "t02", 9.0, **{"budget.parameters": "100"}),
        make_run("context", "200k", 9, 1.0, 9.0),
    ]
    assert [purpose(run) for run in others] == [None] * 4
    assert contestants([*others, *RUNS]) == contestants(RUNS)


def test_without_trials_there_is_nothing() -> None:
    assert contestants(finals("context", "t02", 1.7)) == []
    assert differences([]) == []


def test_every_contestant_and_every_setting_has_words() -> None:
    models, sizes = zip(*(name.split("_") for name in variants_of("fair")), strict=True)
    assert (set(models), set(sizes)) == (MODELS.keys(), SIZES.keys())
    assert then_of("fair").keys() == SETTINGS.keys()


@pytest.mark.usefixtures("every_word")
@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_report_shows_it(tmp_path: Path, lang: str) -> None:
    pack(RUNS, tmp_path / "fair.json.gz")
    runs = gather([tmp_path / "fair.json.gz"])
    page = Page(runs, found_studies(), lang=lang).compose().write(tmp_path).read_text()
    _ = strict_translator(lang)
    assert _("A fair comparison") in page
    assert "0.2100 &plusmn;" in page.replace("±", "&plusmn;")
    assert "-0.107 [" in page
    if lang != "en":  # English needs no words
        texts = {*MODELS.values(), *SIZES.values(), *SETTINGS.values()}
        assert len({_(text) for text in texts}) == len(texts)
    assert (tmp_path / "fair.png").stat().st_size > 10_000
