"""Two groups of runs: paired where they belong together, even if one has more seeds."""

import pytest

from newllm.runs.gathering import Run
from newllm.statistics.intervals import compare, compare_by_seed
from newllm.statistics.variants import start_alike
from newllm.studies.claims.verdicts import PROPERTIES

FIRST = {1: 6.15, 2: 5.97, 3: 5.89}
SECOND = {**FIRST, 4: 7.0, 5: 6.5}


def test_seeds_that_both_have_are_paired() -> None:
    found = compare_by_seed(FIRST, SECOND, 0.05, belong_together=True)
    assert found is not None
    assert found.is_paired
    assert found.first == found.second == list(FIRST.values())
    assert (found.interval.mean, found.interval.half_width) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("first", "belong_together"),
    [(FIRST, False), ({1: 6.15, 8: 5.97, 9: 5.89}, True)],
)
def test_others_are_two_groups(first: dict[int, float], belong_together: bool) -> None:
    found = compare_by_seed(first, SECOND, 0.05, belong_together)
    assert found is not None
    assert not found.is_paired
    assert found == compare(list(first.values()), list(SECOND.values()), 0.05)


def test_one_run_is_no_side() -> None:
    assert compare_by_seed({1: 6.0}, SECOND, 0.05, belong_together=True) is None


def test_runs_of_one_size_and_corpus_start_alike() -> None:
    def run(parameters: int, data: str) -> Run:
        return Run("runs/a/seed=1", {"parameters": parameters, "data_sha256": data})

    assert start_alike([run(5, "x"), run(5, "x")])
    assert not start_alike([run(5, "x"), run(6, "x")])
    assert not start_alike([run(5, "x"), run(5, "y")])


def test_who_did_not_look_knows_of_no_spike() -> None:
    result = {"status": "done", "spikes": {"val_by_step": []}}
    has_no_spike = PROPERTIES["has no spike"]
    assert has_no_spike(Run("runs/a/seed=1", result)) is None
    assert (
        has_no_spike(Run("runs/a/seed=1", result, looks=[{"step": 1.0, "val/loss": 5.0}])) is True
    )
