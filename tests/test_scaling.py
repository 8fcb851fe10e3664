"""The law of scaling: recovered from points that follow it, with intervals that hold."""

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Compose
from records import record

from newllm.config.build import instantiate
from newllm.config.study_file import sweeper_of, variants_of
from newllm.reporting.page import Page
from newllm.reporting.translation import translator
from newllm.runs.gathering import Run
from newllm.studies import found_studies
from newllm.studies.scaling import NO_GAP, NOT_MEASURED, largest_point
from newllm.studies.scaling.law import NAMES, Law, Point, best_contexts, fit, points

TRUE = Law((0.2, 300.0, 0.2, -0.05, 0.8, 1.5, 3.0))
LARGEST = largest_point()
SENTENCES, PARAMETERS = (400, 1000, 2000, 5000, 10_000), (50_000, 140_000, 370_000, 1_000_000)
CONTEXTS = (16, 48, 160, 512)
GRID = list(itertools.product(SENTENCES, PARAMETERS, CONTEXTS))


def width(parameters: int, context: int) -> int:
    """Much as a budget has it: what the context takes is missing elsewhere."""
    return int((parameters / 4) ** 0.5 / (1 + context / (parameters / 1000) ** 0.5 / 15))


def make_points(noise: float, seed: int = 0) -> list[Point]:
    generator = np.random.default_rng(seed)
    found = []
    for sentences, parameters, context in GRID:
        point = Point(sentences, parameters, width(parameters, context), context, 0.0)
        gap = TRUE.gap(point) * float(np.exp(generator.normal(0, noise)))
        found.append(replace(point, gap=gap))
    return found


def test_the_gap_is_what_is_badly_estimated_and_what_is_not_learned() -> None:
    point = Point(800, 100_000, 32, 64, 0.0)
    estimated, not_learned = 0.2 * 2**0.2 * 4**-0.05 * 400 / 1100, 0.8 * 2**-1.5 * 2**-3.0
    assert TRUE.gap(point) == pytest.approx(estimated + not_learned)


def test_the_law_has_a_best_width() -> None:
    gaps = {width: TRUE.gap(Point(400, 50_000, width, 16, 0.0)) for width in (8, 16, 48, 500)}
    assert min(gaps, key=lambda width: gaps[width]) == 48


def test_without_noise_the_law_comes_back() -> None:
    found = fit(make_points(0.0), num_resamples=3)
    assert found is not None
    assert found.law.constants == pytest.approx(TRUE.constants, rel=1e-3)
    assert found.spread < 1e-4


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Of the constants that more than a few narrow models decide on."""
    held, widths = [], []
    for seed in range(20):
        found = fit(make_points(0.05, seed), num_resamples=100)
        assert found is not None
        for index, true in list(enumerate(TRUE.constants))[:4]:
            value, low, high = found.constant(index)
            held.append(low <= true <= high)
            widths.append((high - low) / max(abs(value), 0.1))
        _, low, high = found.prediction(LARGEST)
        noise = np.random.default_rng(1000 + seed).normal(0, 0.05)
        held.append(low <= TRUE.gap(LARGEST) * float(np.exp(noise)) <= high)
    assert np.mean(held) >= 0.85
    assert np.median(widths) < 0.5


def test_what_lies_beyond_the_grid_does_not_decide_on_the_law() -> None:
    grid = make_points(0.05)
    outlier = replace(LARGEST, gap=9.0)
    assert fit([*grid, outlier], num_resamples=2) == fit(grid, num_resamples=2)
    assert fit(grid[: 2 * len(NAMES) - 1]) is None


def test_a_gap_below_zero_has_no_logarithm() -> None:
    grid = make_points(0.05)
    below = replace(grid[0], gap=-0.001)
    assert fit([below, *grid[1:]], num_resamples=2) == fit(grid[1:], num_resamples=2)


def make_run(name: str, *beside: str, sentences: int = 2000, **fields: Any) -> Run:
    result: dict[str, Any] = {
        "status": "done", **record(name, *beside, study="scaling"), "parameters": 140_160,
        "test_loss": 1.61, "test_oracle_loss": 1.51, "threads": 1,
        "sizes": {"hidden_dim": 96, "context_dim": 160},
    }  # fmt: skip
    result["overrides"].insert(0, f"data.train_sentences={sentences}")
    return Run(f"runs/{name}", result | fields)


def test_points_are_read_from_runs() -> None:
    context = "model.context_dim=160"
    others = [
        make_run("2000_140k", context, status="failed"),
        make_run("2000_140k", context, study=None, variant=None),
        make_run("2000_140k", context, study="mine"),
        make_run("2000_140k", context, test_loss=None),
        make_run("2000_140k", context, test_oracle_loss=None),
        make_run("2000_140k"),
        make_run("2000_140k", context, "trainer=smoke"),
        make_run("largest", context),
    ]
    (point,) = points([make_run("2000_140k", context), *others])
    assert replace(point, gap=0.0) == Point(2000, 140_160, 96, 160, 0.0)
    assert point.gap == pytest.approx(0.1)
    (largest,) = points([make_run("largest")])
    assert largest.is_largest


def test_contexts_within_the_scatter_are_as_good() -> None:
    measured = [
        Point(400, 50_064, 64, 16, 0.3),
        Point(400, 49_832, 56, 48, 0.1),
        Point(400, 49_832, 56, 48, 0.3),  # their mean counts
        Point(400, 49_506, 38, 160, 0.21),
        Point(400, 139_614, 139, 16, 0.25),
        Point(1000, 50_064, 64, 16, 0.1),
    ]
    assert best_contexts(measured, 1.1) == {
        400: {50_000: ([48, 160], 0.2), 140_000: ([16], 0.25)},
        1000: {50_000: ([16], 0.1)},
    }


def chosen(variant: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in variants_of("scaling")[variant])


def test_the_sweep_is_the_grid(compose_config: Compose) -> None:
    contexts = [int(n) for n in sweeper_of("scaling")["params"]["model.context_dim"].split(",")]
    variants = [chosen(name) for name in variants_of("scaling") if name != "largest"]
    cells = [(int(v["data.train_sentences"]), int(v["budget.parameters"])) for v in variants]
    assert [(*cell, context) for cell in cells for context in contexts] == GRID
    config = compose_config(*(f"{k}={v}" for k, v in chosen("largest").items() if k != "seed"))
    build = partial(instantiate, config.model, vocabulary_size=256)
    sizes = instantiate(config.budget).sizes(build)
    parameters = sum(weight.numel() for weight in build(**sizes).parameters())
    place = config.data.train_sentences, parameters, sizes["hidden_dim"], config.model.context_dim
    assert Point(*place, 0.0, is_largest=True) == LARGEST


@pytest.mark.usefixtures("every_word")
@pytest.mark.parametrize(("lang", "is_run"), [("en", True), ("ja", False)])
def test_the_report_shows_it(tmp_path: Path, lang: str, is_run: bool) -> None:
    grid = make_points(0.05)
    measured = [replace(grid[0], gap=-0.001), *grid[1:]]
    measured += [replace(LARGEST, gap=gap) for gap in (0.021, 0.022)[: 2 * is_run]]
    runs = [
        make_run(
            "largest" if p.is_largest else "400_50k", *["model.context_dim=1"] * (not p.is_largest),
            parameters=p.parameters, test_loss=1.5 + p.gap, test_oracle_loss=1.5,
            sizes={"hidden_dim": p.width, "context_dim": p.context},
            sentences=p.sentences,
        )
        for p in measured
    ]  # fmt: skip
    _ = translator(lang)
    page = Page(runs, found_studies(), lang=lang).compose().write(tmp_path).read_text()
    assert _("How loss scales") in page
    assert "kappa" in page
    assert _(NO_GAP).format(number=1) in page
    found = fit(measured)
    assert found is not None
    assert f"{found.prediction(LARGEST)[0]:.4f}" in page
    assert (_(NOT_MEASURED) in page) != is_run
    assert ("0.0210, 0.0220" in page) == is_run
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
