"""The study of recall: its variants, which runs it averages, the bound, and the report's part."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose, strict_translator
from records import record
from scipy.stats import entropy

from newllm.config.build import instantiate
from newllm.config.study_file import variants_of
from newllm.reporting.models import NAMES
from newllm.reporting.page import Page
from newllm.reporting.translation import LANGUAGES
from newllm.runs.gathering import Run, gather, pack
from newllm.studies import found_studies
from newllm.studies.recall import EXCEEDED, RWKV_7
from newllm.studies.recall.results import (
    PARTS,
    Contestant,
    best_attention,
    contestants,
    own_runs,
)

VARIANTS = variants_of("recall")


def make_run(
    variant: str, trial: str, seed: int, val: float, bits: float = 40.0, **fields: Any
) -> Run:
    """A run with an accuracy of 0.9 to the training length, and then of 0.5."""
    made = record(variant, f"trial={trial}", study="recall", seed=seed)
    made["overrides"] = [*VARIANTS[variant], f"optimizer.lr={trial}", *made["overrides"]]
    evaluation = {
        f"length_{pairs}": {
            "loss": val, "accuracy": 0.9 if pairs <= 64 else 0.5,
            "bits_recalled": bits * (pairs == 32) + 1,
        }
        for pairs in (4, 32, 64, 128)
    }  # fmt: skip
    result = {
        "status": "done", **made, "best_val_loss": val, "evaluation": evaluation,
        "parameters": 90_000, "corpus": "recall", "state_bytes": 512, "name": "some model",
        "best_epoch": 70, "best_val_loss_batch_mean": None,
        "threads": 1, "config_hash": f"{variant} {trial} {seed}", "references": {"guess": 4.2},
    }  # fmt: skip
    return Run(f"runs/{variant}/{trial}/{seed}", result | fields)


def again(variant: str, trial: str, *bits: float, **fields: Any) -> list[Run]:
    """Runs of a best trial with the seeds 2, 3, ..."""
    return [
        make_run(variant, trial, seed, 9.0, bits=number, **fields)
        for seed, number in enumerate(bits, 2)
    ]


RUNS = [
    make_run("dim32_gated", "t01", 1, 2.0),
    make_run("dim32_gated", "t02", 1, 1.5, bits=99.0),
    *again("dim32_gated", "t02", 50.0, 70.0),
    make_run("dim32_transformer_rotary", "t03", 1, 0.1),
    *again("dim32_transformer_rotary", "t03", 300.0),
    make_run("state_lstm_64", "t01", 1, 1.0, state_bytes=256),
    *again("state_lstm_64", "t01", 9.0, state_bytes=256),
]
UNUSED = [
    *again("dim32_gated", "t01", 500.0),  # not of the best trial
    make_run("state_gated_16", "t01", 1, 1.0),  # a trial that was not run again
]


def test_variants_are_parts_and_models_of_the_report() -> None:
    of_variants = [Contestant(name, []) for name in VARIANTS]
    assert {one.part for one in of_variants} == PARTS.keys()
    assert {one.model for one in of_variants} <= NAMES.keys()
    assert sum(one.is_transformer for one in of_variants) == 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_models_have_the_parameters_or_the_state_of_their_name(
    compose_config: Compose, variant: str
) -> None:
    config = compose_config(*VARIANTS[variant])
    source = instantiate(config.data)
    config.model.max_length = source.max_length
    build = partial(instantiate, config.model, vocabulary_size=source.vocabulary_size)
    model = build(**instantiate(config.budget).sizes(build))
    if variant.startswith("state"):
        assert model.state_bytes(1) == 4 * int(variant.rpartition("_")[2])
    else:
        parameters = sum(weight.numel() for weight in model.parameters())
        assert parameters == pytest.approx(90_000, rel=0.025)


def test_the_best_trial_is_told_by_validation_and_averaged_over_other_seeds() -> None:
    gated, rotary, lstm = contestants([*UNUSED, *RUNS])
    assert (gated.part, gated.model, gated.longest_in_training) == ("dim32", "gated", 64)
    assert [run.result["seed"] for run in gated.runs] == [2, 3]
    assert gated.numbers_of_pairs == [4, 32, 64, 128]
    assert (gated.fullest, gated.bits_of_runs, gated.bits_of_row) == (32, [51, 71], 128 * 8)
    assert gated.bits_recalled.mean == pytest.approx((51 + 71) / 2)
    assert (rotary.model, rotary.bits_recalled.mean) == ("transformer_rotary", 301)
    assert (lstm.part, lstm.model, lstm.state_bits) == ("state", "lstm", 2048)
    assert best_attention([gated, rotary, lstm]) is rotary
    assert best_attention([gated, lstm]) is None


def test_a_diverged_trial_is_not_the_best() -> None:
    trials = [make_run("state_lstm_64", trial, 1, 1.0) for trial in ("t01", "t02")]
    trials[0].result.update(status="diverged", best_val_loss=None)
    (lstm,) = contestants([*trials, *again("state_lstm_64", "t02", 5.0)])
    assert [run.choices["trial"] for run in lstm.runs] == ["t02"]


def test_other_runs_are_none_of_it() -> None:
    changed, unknown, unevaluated = again("state_lstm_64", "t01", 1.0, 1.0, 1.0)
    changed.result["overrides"].append("trainer.max_steps=9")
    unknown.result["variant"] = "state_lstm_63"
    unevaluated.result["evaluation"] = {"length_1": {"accuracy": 1.0}, "test": {"loss": 0.0}}
    others = [changed, unknown, unevaluated]
    assert own_runs([*others, *RUNS]) == RUNS
    assert contestants([*others, *RUNS]) == contestants(RUNS)


def test_recalling_more_than_the_state_has_is_told() -> None:
    trial = make_run("state_lstm_64", "t01", 1, 1.0)
    for bits, is_told in ((4095, False), (4096, True)):
        runs = [trial, *again("state_lstm_64", "t01", bits)]
        (one,) = contestants(runs)
        assert one.exceeds_its_state == is_told
        content = "\n".join(Page(runs, found_studies()).compose().parts)
        assert ("A model cannot recall more bits than its state has" in content) == is_told
        assert ("but state_lstm_64 did" in content) == is_told


def test_the_published_figure_by_our_definition() -> None:
    """72.93 % of 256 values of 4,096 kinds, from 8,192 numbers."""
    accuracy, kinds = 0.7293, 4096
    assert 256 * accuracy * 2 * math.log2(kinds) / 8192 == pytest.approx(0.547, abs=5e-4)
    prediction = [accuracy, *[(1 - accuracy) / (kinds - 1)] * (kinds - 1)]
    bits = 256 * (math.log2(kinds) - entropy(prediction, base=2))
    assert bits / 8192 == pytest.approx(RWKV_7, abs=5e-4)


@pytest.mark.usefixtures("every_word")
@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_report_shows_it(tmp_path: Path, lang: str) -> None:
    pack(RUNS, tmp_path / "recall.json.gz")
    runs = gather([tmp_path / "recall.json.gz"])
    page = Page(runs, found_studies(), lang=lang).compose().write(tmp_path).read_text()
    _ = strict_translator(lang)
    assert _("How much a state holds") in page
    assert "<td>61.0" in page
    assert f"<td>{61 / 128:.3f}</td>" in page  # bits per number of the state
    if lang != "en":  # English needs no words
        texts = {*NAMES.values(), *PARTS.values(), EXCEEDED}
        assert len({_(text) for text in texts}) == len(texts)
    for name in ("recall_bits", "recall_dim32", "recall_state"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
