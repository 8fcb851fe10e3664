"""The study of streams: its variants, the losses by distance, and the report's part."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose, strict_translator
from records import record

from newllm.config.build import instantiate
from newllm.config.study_file import variants_of
from newllm.reporting.models import NAMES
from newllm.reporting.page import Page
from newllm.reporting.translation import LANGUAGES
from newllm.runs.gathering import Run, gather, pack
from newllm.studies import found_studies
from newllm.studies.streams.results import STATES, contestants, own_runs

VARIANTS = variants_of("streams")
PLACES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 50.0, 60.0, 70.0, 128.0, 256.0, 1000.0, 1100.0, 4200.0]


def make_run(variant: str, seed: int, late: float, **fields: Any) -> Run:
    """A run with a loss of 2.5 + seed / 10 up to the window, and of `late` beyond."""
    early = 2.5 + seed / 10
    made = record(variant, study="streams", seed=seed)
    made["overrides"] = [*VARIANTS[variant], *made["overrides"]]
    result = {
        "status": "done", **made, "best_val_loss": early, "evaluation": {},
        "parameters": 300_000, "corpus": "stdlib_source", "state_bytes": 2048,
        "name": "some model", "seconds": 60.0, "steps": 900, "best_epoch": 1,
        "best_val_loss_batch_mean": None, "threads": 1, "references": {"trigram": 3.0},
        "config_hash": f"{variant} {seed}", "places_by_position": PLACES,
        "val_loss_by_position": [early if place < 100 else late for place in PLACES],
        "references_by_position": {"trigram": [3.0] * len(PLACES)},
        "bits_per_byte": {"validation": {"value": 1.9}},
    }  # fmt: skip
    return Run(f"runs/{variant}/{seed}", result | fields)


RUNS = [
    *(make_run("gated_kept", seed, 2.4) for seed in (1, 2, 3)),
    *(make_run("gated_zero", seed, 4.0 + seed / 5) for seed in (1, 2)),
    make_run("transformer_zero", 1, 5.0),
]


def test_variants_are_models_and_states_of_the_report() -> None:
    names = [name.partition("_") for name in VARIANTS]
    assert {model for model, _, _ in names} <= NAMES.keys()
    assert {state for _, _, state in names} == STATES.keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_models_have_about_as_many_parameters(compose_config: Compose, variant: str) -> None:
    config = compose_config(*VARIANTS[variant])
    config.model.max_length = config.data.max_length
    build = partial(instantiate, config.model, vocabulary_size=1000)
    model = build(**instantiate(config.budget).sizes(build))
    parameters = sum(weight.numel() for weight in model.parameters())
    assert parameters == pytest.approx(300_000, rel=0.05)


def test_losses_are_compared_with_those_at_the_window() -> None:
    kept, zero, transformer = contestants(RUNS)
    assert (kept.model, kept.state, kept.window) == ("gated", "kept", 64)
    assert kept.excess(1).mean == pytest.approx(-0.3)
    assert kept.excess(16).mean == pytest.approx(-0.6)
    assert zero.change(64).mean == pytest.approx(1.65)
    assert zero.change(64).half_width == pytest.approx(12.706 * 0.05, rel=1e-3)
    assert transformer.bits.mean == 1.9


def test_other_runs_are_none_of_it() -> None:
    changed = make_run("gated_kept", 4, 1.0)
    changed.result["overrides"].append("optimizer.lr=0.1")
    short = make_run("gated_kept", 5, 1.0, places_by_position=None)
    other = make_run("gated_kept", 6, 1.0, references_by_position={})
    places = [1.5, *PLACES[1:]]
    elsewhere = make_run("gated_kept", 7, 1.0, places_by_position=places)  # other documents
    assert own_runs([changed, short, other, *RUNS, elsewhere]) == RUNS


@pytest.mark.usefixtures("every_word")
@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_report_shows_it(tmp_path: Path, lang: str) -> None:
    pack(RUNS, tmp_path / "streams.json.gz")
    runs = gather([tmp_path / "streams.json.gz"])
    page = Page(runs, found_studies(), lang=lang).compose().write(tmp_path).read_text()
    assert strict_translator(lang)("Training on streams") in page
    assert "+1.650" in page
    assert (tmp_path / "streams_distance.png").stat().st_size > 10_000
