"""Spikes: the published ones, made ones, and curves that have none."""

import math

import numpy as np
import pytest

from newllm.statistics.spikes import find_spikes, shares_of_rise, spikes_of_run
from newllm.studies.series.results import published


@pytest.mark.parametrize(
    ("name", "onset", "peak", "recovery", "ratio", "steepest"),
    [("phase1_baseline", 19, 20, 23, 2.5485, 1.9247), ("phase1_wide", 10, 11, 13, 2.3513, 1.8464)],
)
def test_the_published_spikes(
    name: str, onset: int, peak: int, recovery: int, ratio: float, steepest: float
) -> None:
    (curve,) = [curve for curve in published()["curve"] if curve["name"] == name]
    losses = curve["losses"]
    (spike,) = find_spikes(curve["epochs"], losses)
    assert (spike.onset, spike.peak, spike.recovery) == (onset, peak, recovery)
    assert spike.as_row()["duration"] == recovery - onset
    assert spike.ratio == pytest.approx(ratio, abs=1e-4)
    assert spike.steepest == pytest.approx(steepest, abs=1e-4)


def test_one_value_before_is_enough() -> None:
    (spike,) = find_spikes([1, 2, 3], [2.0, 6.0, 2.0])
    assert (spike.level, spike.onset, spike.peak, spike.recovery) == (2.0, 2, 2, 3)


def test_two_spikes_each_have_their_own_level() -> None:
    values = [4, 4, 8, 4, 4, 3, 3, 9, 3, 3]
    first, second = find_spikes(range(10), values)
    assert (first.onset, first.level, first.ratio) == (2, 4, 2)
    assert (second.onset, second.level, second.ratio) == (7, 3, 3)


def test_a_spike_that_the_series_ends_before_it_is_over() -> None:
    (spike,) = find_spikes(range(5), [2.0, 2.0, 8.0, 6.0, 4.0])
    assert (spike.recovery, spike.as_row()["duration"]) == (None, None)


@pytest.mark.parametrize(
    "values",
    [
        [5.0, 4.0, 3.0, 2.0],  # falls
        [3.0, 4.0, 5.0, 9.0],  # only rises
        [3.0, 4.0, 5.0, 4.9, 5.5],  # rises, with a notch
        [3.0, 3.6, 3.0],  # a rise of a fifth
        [4.0],
        [],
        [3.0, math.nan, 9.0, 3.0],  # diverged
    ],
)
def test_what_is_no_spike(values: list[float]) -> None:
    assert find_spikes(range(len(values)), values) == []


@pytest.mark.parametrize(("noise", "most"), [(0.02, 0.0), (0.04, 0.005)])
def test_false_alarms_on_curves_without_a_spike(noise: float, most: float) -> None:
    """Curves that fall, and curves that fall and rise again, with noise of 2 and 4 %."""
    rng = np.random.default_rng(0)
    steps = np.arange(100)
    alarms = 0
    for number in range(1000):
        curve = 2 + 4.9 * np.exp(-steps / rng.uniform(5, 50))
        if number % 2:
            curve += np.maximum(0, steps - 40) * rng.uniform(0, 0.03)
        alarms += bool(find_spikes(steps, curve * np.exp(noise * rng.standard_normal(100))))
    assert alarms / 1000 <= most


def test_made_spikes_are_found() -> None:
    rng = np.random.default_rng(1)
    steps = np.arange(100)
    for height in (0.5, 1.0, 2.0):
        bump = height * np.exp(-((steps - 50) ** 2) / 8)
        curve = (2 + 3 * np.exp(-steps / 20)) * (1 + bump)
        found = find_spikes(steps, curve * np.exp(0.02 * rng.standard_normal(100)))
        spike = max(found, key=lambda spike: spike.ratio)
        assert abs(spike.peak - 50) <= 2
        assert 44 <= spike.onset <= 50


def test_what_a_spike_is_made_of() -> None:
    losses = [(1.0, 0.5, 2.5), (1.0, 0.5, 2.5), (4.0, 0.5, 3.5), (1.0, 0.5, 2.5)]
    rows = [
        {
            "step": step,
            "val/loss": sum(parts),
            **dict(zip(("unk", "eos", "other"), parts, strict=True)),
        }
        for step, parts in enumerate(losses)
    ]
    found = spikes_of_run([], [], rows)
    (spike,) = found["val_by_step"]
    assert (spike["unk"], spike["eos"], spike["other"]) == (0.75, 0.0, 0.25)
    assert found["val_by_epoch"] == found["train_by_step"] == []
    (again,) = find_spikes(range(4), [row["val/loss"] for row in rows])
    assert shares_of_rise(again, rows)["unk"] == 0.75
