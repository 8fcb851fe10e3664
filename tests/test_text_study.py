"""The study of real text: its variants, which runs it averages, and the report's part."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose, strict_translator
from records import record

from newllm.config.build import instantiate
from newllm.config.study_file import variants_of
from newllm.reporting.models import MODELS, NAMES
from newllm.reporting.page import Page
from newllm.reporting.translation import LANGUAGES
from newllm.runs.gathering import Run, gather, pack
from newllm.studies import found_studies
from newllm.studies.text.results import PARTS, contestants, own_runs, references

VARIANTS = variants_of("text")


def make_run(variant: str, trial: str, seed: int, bits: float, **fields: Any) -> Run:
    made = record(variant, f"trial={trial}", study="text", seed=seed)
    chosen = [*VARIANTS[variant], f"optimizer.lr={trial}"]
    is_tested = seed > 1
    made["overrides"] = [*chosen, *["test=true"] * is_tested, *made["overrides"]]
    found = {"value": bits, "half_width": 0.03, "num_sequences": 110}
    result = {
        "status": "done", **made, "best_val_loss": bits, "evaluation": {"test": {"loss": bits}},
        "parameters": 1_000_000, "corpus": "stdlib_source", "state_bytes": 2048,
        "name": "some model", "seconds": 60.0 * seed, "steps": 900, "best_epoch": 1,
        "best_val_loss_batch_mean": None, "threads": 1, "references": {"trigram": 3.0},
        "config_hash": f"{variant} {trial} {seed}",
        "bits_per_byte": {"validation": found, **({"test": found} if is_tested else {})},
        "test_bits_per_byte": bits if is_tested else None,
        "test_references_bits_per_byte": {"trigram": 2.4321, "xz": 1.8765} if is_tested else None,
    }  # fmt: skip
    return Run(f"runs/{variant}/{trial}/{seed}", result | fields)


RUNS = [
    make_run("tokens_gated", "t01", 1, 2.5),
    make_run("tokens_gated", "t02", 1, 2.1),
    *(make_run("tokens_gated", "t02", seed, 2.0 + seed / 10) for seed in (2, 3, 4)),
    make_run("tokens_lstm", "t01", 1, 2.6),
    make_run("tokens_lstm", "t01", 2, 2.7),
    make_run("time_lstm", "t03", 1, 1.9),
    make_run("time_lstm", "t03", 2, 1.8),
]


def test_variants_are_parts_and_models_of_the_report() -> None:
    names = [name.partition("_") for name in VARIANTS]
    assert {part for part, _, _ in names} == PARTS.keys()
    assert {model for _, _, model in names} <= NAMES.keys()


def test_models_have_colours_of_their_own() -> None:
    # No study has both a Transformer without further name and one with learned positions.
    colours = [model.colour for name, model in MODELS.items() if name != "transformer"]
    assert len(set(colours)) == len(colours)


@pytest.mark.parametrize("variant", VARIANTS)
def test_models_have_a_million_parameters(compose_config: Compose, variant: str) -> None:
    config = compose_config(*VARIANTS[variant])
    config.model.max_length = config.data.max_length
    build = partial(instantiate, config.model, vocabulary_size=1000)
    model = build(**instantiate(config.budget).sizes(build))
    parameters = sum(weight.numel() for weight in model.parameters())
    assert parameters == pytest.approx(1_000_000, rel=0.05)


def test_the_best_trial_is_averaged_over_other_seeds() -> None:
    gated, lstm, shorter = contestants(RUNS)
    assert (gated.part, gated.model) == ("tokens", "gated")
    assert gated.bits_of_runs == pytest.approx([2.2, 2.3, 2.4])
    assert gated.bits.mean == pytest.approx(2.3)
    assert gated.minutes.mean == pytest.approx(3.0)
    assert gated.documents_half_width == 0.03
    assert (lstm.model, lstm.bits_of_runs) == ("lstm", [2.7])
    assert (shorter.part, shorter.model) == ("time", "lstm")
    assert references([gated, lstm]) == {"trigram": 2.4321, "xz": 1.8765}


def test_other_runs_are_none_of_it() -> None:
    untested = make_run("tokens_lstm", "t01", 3, 1.0, test_bits_per_byte=None)
    changed = make_run("tokens_lstm", "t01", 4, 1.0)
    changed.result["overrides"].append("trainer.max_steps=9")
    alone = make_run("time_transformer", "t01", 1, 1.0)
    assert contestants([untested, changed, alone, *RUNS]) == contestants(RUNS)
    assert own_runs([changed, alone, *RUNS]) == RUNS


@pytest.mark.usefixtures("every_word")
@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_report_shows_it(tmp_path: Path, lang: str) -> None:
    pack(RUNS, tmp_path / "text.json.gz")
    runs = gather([tmp_path / "text.json.gz"])
    page = Page(runs, found_studies(), lang=lang).compose().write(tmp_path).read_text()
    assert strict_translator(lang)("Real text") in page
    for shown in ("1.877", "2.432", "2.300 &plusmn; 0.248 (n=3)"):
        assert shown.replace("&plusmn;", "±") in page.replace("&plusmn;", "±")
    assert (tmp_path / "text_bits.png").stat().st_size > 10_000
