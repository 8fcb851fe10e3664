"""Runs that differ in their seed alone: their label, and what they are beside others."""

import math
from typing import Any

import pytest
from conftest import strict_translator

from newllm.reporting.answer import answer
from newllm.reporting.translation import LANGUAGES, translator
from newllm.runs.gathering import Run
from newllm.statistics.comparisons import BASELINE, NO_RUN, ONE_SEED, UNDECIDED, VOID, contests
from newllm.statistics.labels import labels, numbered
from newllm.statistics.variants import variants

ENGLISH = translator("en")
REFERENCES = {"uniform": 5.5, "unigram": 5.0, "bigram": 2.35, "oracle": 1.51}


def make(chosen: str, seed: int, loss: float | None = 1.7, **fields: Any) -> Run:
    """A run as the gathering finds it; its choices as one text."""
    result = {
        "status": "done" if loss else "diverged", "seed": seed, "best_val_loss": loss,
        "overrides": [*chosen.split(), f"seed={seed}"], "variant_hash": chosen,
        "corpus": "quality500", "data_sha256": "x", "references": REFERENCES, "name": "gated C8",
    }  # fmt: skip
    return Run(f"outputs/runs/{chosen}/seed={seed}", result | fields)


def side(chosen: str, losses: list[float | None], **fields: Any) -> list[Run]:
    """Seeds 1, 2, ... of a variant."""
    return [make(chosen, seed, loss, **fields) for seed, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        # What all share is not shown, nor the keys of what names itself.
        (["experiment=modern model=context", "experiment=modern model=lstm"], ["context", "lstm"]),
        # A choice that the other leaves as it is.
        (["experiment=modern", "experiment=modern recipe.dropout=0.1"], ["modern", "dropout=0.1"]),
        (["", "model=lstm"], ["default", "lstm"]),
        # The last words of keys, unless two keys end alike.
        (["model.width=8 +a.lr=1", "model.width=16 +a.lr=1"], ["width=8", "width=16"]),
        (["a.lr=1 b.lr=2", "a.lr=2 b.lr=1"], ["a.lr=1 b.lr=2", "a.lr=2 b.lr=1"]),
        (["~callbacks.early_stopping", ""], ["~callbacks.early_stopping", "default"]),
        # What changes nothing is no difference.
        (["model=lstm jobs=2 logger=none", "model=gru threads=1"], ["lstm", "gru"]),
        (["model=lstm seed=1 name=mine", "model=lstm"], ["mine", "lstm"]),
    ],
)  # fmt: skip
def test_labels_say_what_differs(chosen: list[str], expected: list[str]) -> None:
    runs = [run for words in chosen for run in side(words, [1.7, 1.8])]
    found = variants(runs)
    assert [variant.label for variant in found] == expected
    assert [len(variant.runs) for variant in found] == [2] * len(chosen)


def test_labels_are_unique_whatever_the_runs() -> None:
    assert labels([{}, {}, {}], [["a", "p"], ["b", "q"], ["b", "r"]]) == ["a", "b q", "b r"]
    assert labels([{}, {}], [["a"], ["a"]]) == ["default", "default (2)"]
    assert numbered(["a", "a (2)", "a"]) == ["a", "a (2)", "a (3)"]
    assert labels([], []) == []


def test_a_run_that_does_not_know_what_was_chosen_stands_alone() -> None:
    """Whatever its folder is called, which somebody may have renamed."""
    places = ["runs/modern,model=lstm/seed=1", "runs/modern,model=lstm/seed=2", "day/time"]
    found = variants([Run(place, {"status": "broken"}) for place in places])
    assert [(variant.label, len(variant.runs)) for variant in found] == [(p, 1) for p in places]


def test_a_variant_of_a_study_is_called_by_its_name() -> None:
    made = "study=ladder experiment=modern recipe.dropout=0.1 variant=remove_dropout"
    runs = [*side(made, [1.7, 1.8]), *side("experiment=modern", [1.6, 1.7])]
    assert [variant.label for variant in variants(runs)] == ["ladder_remove_dropout", "modern"]
    found = variants([*side(made, [1.7]), *side(f"{made} recipe.max_epochs=9", [1.6])])
    assert [variant.label for variant in found] == ["ladder_remove_dropout", "max_epochs=9"]


def test_a_job_that_never_started_is_counted_where_it_belongs() -> None:
    dead = Run("runs/b/seed=3", {"status": "failed", "error": "no disk", "seed": 3,
                                 "overrides": ["model=lstm", "seed=3"]})  # fmt: skip
    (contest,) = contests([*side("model=gru", [1.7, 1.8]), *side("model=lstm", [1.6, 1.7]), dead])
    assert contest.variants[1].not_done == {"failed": 1}
    assert "Excluded from 5 runs: 1 failed" in answer(contest, ENGLISH)


def test_differences_are_paired_by_seed_with_the_verdicts_of_the_criteria() -> None:
    base = [1.70, 1.80, 1.60, 1.75, 1.65]
    runs = [
        *side("model=lstm", list(base)),
        *side("model=better", [loss - 0.2 + 0.001 * i for i, loss in enumerate(base)]),
        *side("model=worse", [loss + 0.2 + 0.001 * i for i, loss in enumerate(base)]),
        *side("model=same", [loss + 0.001 * i for i, loss in enumerate(base)]),
        *side("model=open", [1.75, 1.70, 1.66, 1.70, 1.52]),
        *side("model=lone", [1.0]),
        *side("model=gone", [None, None]),
        *side("model=leaky", [0.5, 0.6], sees_the_future=True),
    ]
    (contest,) = contests(runs)
    verdicts = {s.variant.label: s.verdict for s in contest.standings}
    assert verdicts == {
        "lstm": BASELINE, "better": "lower", "worse": "higher", "same": "no effect",
        "open": UNDECIDED, "lone": ONE_SEED, "gone": NO_RUN, "leaky": VOID,
    }  # fmt: skip
    by_label = {s.variant.label: s for s in contest.standings}
    better, undecided = by_label["better"], by_label["open"]
    assert better.difference is not None
    assert better.difference.mean == pytest.approx(-0.198)
    assert better.difference.half_width < 0.01 < 0.05 < (better.variant.loss or 0).half_width  # type: ignore[union-attr]
    assert undecided.most is not None
    assert undecided.most > 5
    # The leaky one is lowest and counts for nothing; one seed says nothing.
    assert [s.variant.label for s in contest.ranked][:2] == ["lone", "better"]
    assert contest.ordered[0].variant.label == "lstm"


def test_other_seeds_are_compared_as_groups() -> None:
    first = side("model=lstm", [1.7, 1.8, 1.6])
    second = [make("model=gru", seed, 1.7) for seed in (7, 8, 9)]
    (contest,) = contests([*first, *second])
    comparison = contest.standings[1].comparison
    assert comparison is not None
    assert not comparison.is_paired
    # So are runs on fewer training sentences, which read other batches.
    fewer = side("model=gru data.train_sentences=9", [1.7, 1.8, 1.6], data_sha256="y")
    (contest,) = contests([*first, *fewer])
    comparison = contest.standings[1].comparison
    assert comparison is not None
    assert not comparison.is_paired


def test_other_validation_targets_are_never_compared() -> None:
    runs = [
        *side("model=lstm", [1.7, 1.8]),
        *side("data=tiny30", [4.1, 4.2], corpus="tiny30", data_sha256="t", references={}),
        *side("model=gru data.seed=2", [1.7, 1.8], data_sha256="r", references={"oracle": 1.4}),
        *side("model=gru data.validation_sentences=9", [1.0, 1.1], data_sha256="v",
              references={"oracle": 1.3}),
    ]  # fmt: skip
    found = contests(runs)
    assert [contest.corpus for contest in found] == [
        "quality500", "tiny30", "quality500, seed=2", "quality500, validation_sentences=9"
    ]  # fmt: skip
    assert all(len(contest.standings) == 1 for contest in found)


def test_generated_data_is_compared_by_its_source_and_references() -> None:
    """Such data has no digest; what failed before its data was known belongs to the only one."""
    parity = {"corpus": "parity", "data_sha256": None, "references": {"guess": 0.69}}
    recall = {"corpus": "recall", "data_sha256": None, "references": {"guess": 8.32}}
    unknown = {"corpus": None, "data_sha256": None, "references": None, "status": "failed"}
    runs = [*side("model=lstm data=parity", [0.1], **parity),
            *side("model=gru data=parity", [0.2], **parity)]  # fmt: skip
    failed = side("model=elman data=parity", [math.nan], **unknown)
    (contest,) = contests([*runs, *failed])
    assert len(contest.standings) == 3
    found = contests([*runs, *side("data=recall", [8.1], **recall), *side("data=tiny30", [4.1])])
    assert [len(contest.standings) for contest in found] == [2, 1, 1]


@pytest.mark.parametrize("name", ["gated", "model=gated", "C9", "gated a.lr=1"])
def test_a_baseline_by_any_of_its_names(name: str) -> None:
    runs = [*side("model=lstm a.lr=1", [1.7, 1.8]),
            *side("model=gated a.lr=1", [1.7, 1.8], name="C9")]  # fmt: skip
    (contest,) = contests(runs, name)
    assert contest.baseline.label == "gated"


def test_a_full_name_means_one_whatever_lies_beside() -> None:
    """As a sweep names its baseline, which knows of no other runs."""
    runs = [make(f"model=lstm{words}", 1) for words in ("", " a.lr=1", " a.lr=1 a.decay=2")]
    for run in variants(runs):
        (contest,) = contests(runs, run.full_name)
        assert contest.baseline.full_name == run.full_name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gru", "--baseline gru: no such group; there are 'lstm lr=1', 'lstm lr=2', 'x'"),
        ("lstm", "--baseline lstm: could be any of 'lstm lr=1', 'lstm lr=2'"),
    ],
)
def test_a_baseline_that_is_none(name: str, message: str) -> None:
    runs = [make("model=lstm a.lr=1", 1), make("model=lstm a.lr=2", 1), make("model=x", 1)]
    with pytest.raises(ValueError, match="--baseline") as caught:
        contests(runs, name)
    assert str(caught.value) == message


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_answer(lang: str) -> None:
    """Best against baseline, the baseline best, one seed, one group, none: in both languages."""
    base = [1.70, 1.71, 1.69]
    better = [1.50, 1.52, 1.49]
    cases = {
        "b has the lowest mean: 1.503 [1.465, 1.541] (n=3), compared with a": (base, better),
        "No group has a lower mean than a, 1.503 [1.465, 1.541] (n=3); the next": (better, base),
        "b has the lowest mean: 1.500 (n=1), compared with a, 1.700 (n=1): -0.200, which is "
        "inconclusive with one seed": (base[:1], better[:1]),
        "None of these runs": ([None], [None]),
    }  # fmt: skip
    for beginning, (first, second) in cases.items():
        (contest,) = contests([*side("model=a", list(first)), *side("model=b", list(second))])
        text = answer(contest, strict_translator(lang))
        if lang == "en":
            assert text.startswith(beginning)
            told = "bigram counts give 2.350, the generating grammar 1.510" in text
            assert told == bool(contest.ranked)
    (contest,) = contests(side("model=a", list(base)))
    assert ("nothing to compare" in answer(contest, strict_translator(lang))) == (lang == "en")
