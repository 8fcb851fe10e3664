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
from newllm.config.study_file import sweeper_of, variants_of
from newllm.config.trials import draw_trials
from newllm.reporting.page import Page
from newllm.reporting.translation import LANGUAGES
from newllm.runs.gathering import Run, gather, pack
from newllm.studies import found_studies
from newllm.studies.recall import EXCEEDED, RWKV_7
from newllm.studies.recall.results import (
    ATTENTION,
    MODELS,
    PARTS,
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


RUNS = [
    make_run("dim32_gated", "t01", 1, 2.0),
    make_run("dim32_gated", "t02", 1, 1.5, bits=50.0),
    make_run("dim32_gated", "t02", 2, 2.6, bits=70.0),
    make_run("dim32_gated", "t01", 2, 0.1),  # not of the best trial
    make_run("dim32_rotary", "t03", 1, 0.1, bits=300.0),
    make_run("state_lstm_128", "t01", 1, 1.0),
    make_run("state_lstm_64", "t01", 1, 1.0, bits=9.0, state_bytes=256),
]


def test_variants_are_parts_and_models_of_the_report() -> None:
    parts, models = zip(*(name.split("_")[:2] for name in VARIANTS), strict=True)
    assert (set(parts), set(models)) == (PARTS.keys(), MODELS.keys())
    assert MODELS.keys() > set(ATTENTION)


def test_every_learning_rate_is_tried_once() -> None:
    trials = sweeper_of("recall")["trials"]
    (rates,) = (entry["choices"] for entry in trials["space"].values())
    drawn = [float(line.partition("=")[2]) for (line,) in draw_trials(**trials)]
    assert sorted(drawn) == sorted(rates)


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
        assert parameters == pytest.approx(90_000, rel=0.02)


def test_the_best_trial_of_the_first_seed_counts_with_all_its_seeds() -> None:
    gated, rotary, *states = contestants(RUNS)
    assert (gated.part, gated.model, gated.longest_in_training) == ("dim32", "gated", 64)
    assert [run.result["seed"] for run in gated.runs] == [1, 2]
    assert gated.mean("bits_recalled", 32).mean == pytest.approx((51 + 71) / 2)
    assert (gated.fullest, gated.bits_recalled.num_runs) == (32, 2)
    assert gated.numbers_of_pairs == [4, 32, 64, 128]
    assert gated.bits_of_row == 128 * 8
    assert gated.bits_of_runs == [51, 71]
    assert rotary.bits_recalled.mean == 301
    assert [one.state_bits for one in states] == [2048, 4096]
    assert best_attention([gated, rotary, *states]) is rotary
    assert best_attention(states) is None


def test_a_diverged_trial_is_not_the_best() -> None:
    runs = [make_run("state_lstm_64", trial, 1, 1.0) for trial in ("t01", "t02")]
    runs[0].result.update(status="diverged", best_val_loss=None)
    (lstm,) = contestants(runs)
    assert [run.choices["trial"] for run in lstm.runs] == ["t02"]


def test_other_runs_are_none_of_it() -> None:
    changed = make_run("state_lstm_64", "t01", 1, 0.0)
    changed.result["overrides"].append("trainer.max_steps=9")
    assert own_runs([changed, *RUNS]) == RUNS


def test_recalling_more_than_the_state_has_is_told() -> None:
    honest, faulty = (make_run("state_lstm_64", "t01", 1, 1.0, bits=bits) for bits in (4095, 4096))
    for run, is_told in ((honest, False), (faulty, True)):
        (one,) = contestants([run])
        assert one.exceeds_its_state == is_told
        content = "\n".join(Page([run], found_studies()).compose().parts)
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
    assert f"<td>{61 / 128:.3f}</td>" in page  # bits per number
    if lang != "en":  # English needs no words
        texts = {*MODELS.values(), *PARTS.values(), EXCEEDED}
        assert len({_(text) for text in texts}) == len(texts)
    for name in ("recall_bits", "recall_dim32", "recall_state"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
