"""Power against simulated tests, against scipy where it can tell, and seeds that reach it."""

import numpy as np
import pytest
from scipy import stats

from newllm.statistics.intervals import compare, criteria, verdicts
from newllm.statistics.power import (
    MOST_SEEDS,
    Scatter,
    power_of_difference,
    power_of_equivalence,
    seeds_to_decide,
    seeds_to_see,
)

PAIRS, GROUPS = Scatter(0.04**2, is_paired=True), Scatter(2 * 0.04**2, is_paired=False)


def draw(rng: np.random.Generator, difference: float, num_runs: int) -> tuple[np.ndarray, ...]:
    """Two groups that scatter like `PAIRS` when paired and like `GROUPS` when not."""
    return rng.normal(1 + difference, 0.04, num_runs), rng.normal(1, 0.04, num_runs)


@pytest.mark.parametrize("scatter", [PAIRS, GROUPS], ids=["pairs", "groups"])
@pytest.mark.parametrize("num_runs", [3, 6, 30])
def test_power_is_that_of_the_noncentral_t(scatter: Scatter, num_runs: int) -> None:
    freedom = (num_runs - 1) * (1 if scatter.is_paired else 2)
    shift = 0.05 / (scatter.variance / num_runs) ** 0.5
    limit = stats.t.ppf(0.975, freedom)
    expected = stats.nct.sf(limit, freedom, shift) + stats.nct.cdf(-limit, freedom, shift)
    found = power_of_difference(num_runs, 0.05, scatter, 0.05)
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("is_paired", [True, False])
def test_power_is_how_often_verdicts_are_found(is_paired: bool) -> None:
    """With the tests that the report makes; three standard errors of 1,000 draws are 0.04."""
    num_runs, effect, alpha = 8, 0.05, criteria().alpha
    # The difference of a pair of independent runs scatters like that of two groups.
    scatter = Scatter(GROUPS.variance, is_paired)
    rng = np.random.default_rng(4)
    seen = shown = 0
    for _ in range(1000):
        found = compare(*map(list, draw(rng, effect, num_runs)), effect, is_paired)
        seen += found.p_difference <= alpha
        equal = compare(*map(list, draw(rng, 0.0, num_runs)), effect, is_paired)
        shown += verdicts([equal], alpha) == ["no effect"]
    power = power_of_difference(num_runs, effect, scatter, alpha)
    assert seen / 1000 == pytest.approx(power, abs=0.04)
    equivalence = power_of_equivalence(num_runs, effect, scatter, alpha)
    assert shown / 1000 == pytest.approx(equivalence, abs=0.04)


@pytest.mark.parametrize("spread", [0.002, 0.015, 0.04, 0.2])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 14])
def test_the_number_is_the_first_that_has_the_power(spread: float, alpha: float) -> None:
    scatter = Scatter(spread**2, is_paired=True)
    enough = seeds_to_decide(scatter, 0.05, alpha, 0.8)
    assert enough is not None
    powers = [
        min(power(n, 0.05, scatter, alpha) for power in (power_of_difference, power_of_equivalence))
        for n in range(2, enough + 1)
    ]
    assert powers[-1] >= 0.8
    assert all(power < 0.8 for power in powers[:-1])


def test_numbers_at_the_ends() -> None:
    assert seeds_to_decide(Scatter(0.0, is_paired=True), 0.05, 0.05, 0.8) == 2
    assert seeds_to_decide(Scatter(25.0, is_paired=True), 0.05, 0.05, 0.8) is None
    assert seeds_to_decide(PAIRS, 0.05, 0.05, 0.8, at_least=50) == 50
    assert seeds_to_see(PAIRS, 0.5, 0.05, 0.8) == 2 or seeds_to_see(PAIRS, 0.5, 0.05, 0.8) == 3
    rare = seeds_to_see(Scatter(0.28, is_paired=True), 0.05, 0.05, 0.8)
    assert rare is not None
    assert 800 < rare < MOST_SEEDS  # the normal formula says 879


def test_the_plans_own_number() -> None:
    """Two groups at a spread of 0.136 need 118 seeds a side; see `criteria.toml`."""
    assert seeds_to_see(Scatter(2 * 0.136**2, is_paired=False), 0.05, 0.05, 0.8) == 118
