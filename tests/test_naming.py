"""Where the runs of a sweep lie: told by what was asked for."""

import pytest

from newllm.config.naming import (
    LONGEST,
    beside_variant,
    choices,
    folder_name,
    record_of,
    run_folder,
    run_name,
    split,
)


def test_a_name_is_the_experiment_and_the_other_choices_sorted() -> None:
    overrides = ["seed=2", "optimizer.lr=0.1", "experiment=phase3_gating", "data=tiny30"]
    assert run_name(overrides) == "phase3_gating,data=tiny30,optimizer.lr=0.1"
    name = "phase3_gating,data=tiny30,optimizer.lr=0.1"
    assert run_folder(overrides, 2) == f"{name}/seed=2"


def test_what_changes_no_number_changes_no_name() -> None:
    chosen = [
        "experiment=lstm",
        "sweep=series",
        "only=lstm",
        "jobs=2",
        "logger=none",
        "callbacks.steps.small=9",
        "recurrence.compile=false",
        "+trainer.profiler=simple",
        "~callbacks.curves",
    ]
    assert (
        run_name(
            [*chosen, "sweep=series", "hydra/launcher=basic", "~callbacks.curves", "threads=1"]
        )
        == "lstm"
    )
    assert run_name(["experiment=none"]) == run_name([]) == "default"


def test_a_callback_that_acts_is_in_the_name() -> None:
    stopped = run_name(["experiment=phase5_final_exp1", "~callbacks.early_stopping"])
    assert stopped == "phase5_final_exp1,~callbacks.early_stopping"
    assert run_name(["experiment=lstm", "+callbacks.mine.rate=2"]) == "lstm,callbacks.mine.rate=2"
    assert choices(["experiment=lstm", "~callbacks.early_stopping"]).keys() == {
        "experiment",
        "~callbacks.early_stopping",
    }


@pytest.mark.parametrize(
    "line", ["callbacks.steps._target_=my.Stopper", "callbacks.steps={_target_:my.Stopper}"]
)
def test_a_callback_that_takes_the_place_of_one_that_watches_is_in_the_name(line: str) -> None:
    assert run_name([line]) == line
    assert choices([line]) == dict([line.split("=")])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("model=lstm", ("model", "lstm")),
        ("++model.path=a=b", ("model.path", "a=b")),
        ("~callbacks.early_stopping", ("callbacks.early_stopping", "")),
        ("data/part@data.other=x", ("data.part", "x")),
    ],
)
def test_an_override_is_a_key_and_a_value(line: str, expected: tuple[str, str]) -> None:
    assert split(line) == expected


def test_choices_are_in_the_order_of_the_line_and_the_last_counts() -> None:
    lines = ["model=gru", "name=null", "~model.x", "+b=1", "model=lstm", "experiment=none"]
    assert list(choices(lines).items()) == [("model", "lstm"), ("~model.x", ""), ("b", "1")]


def test_a_name_of_ones_own_comes_first() -> None:
    assert run_name(["name=again", "experiment=lstm"]) == "again,lstm"
    assert run_name(["name=null", "model=gru"]) == "model=gru"


def test_a_long_name_is_cut_and_stays_different() -> None:
    first, second = (run_name([f"data.path={'x' * 200}/{number}"]) for number in (1, 2))
    assert first != second
    assert len(first) == len(second) == LONGEST
    assert "/" not in first


def test_a_name_holds_all_that_a_sweep_of_small_models_differs_in() -> None:
    sizes = [f"model.{name}=16" for name in ("context_dim", "hidden_dim", "embedding_dim")]
    shared = ["experiment=modern", "data=tiny30", *sizes, "model.num_layers=2"]
    chosen = [*shared, "trainer.max_epochs=30", "recipe.batch_size=8"]
    assert run_name(chosen).endswith("recipe.batch_size=8,trainer.max_epochs=30")


def test_what_a_run_is_known_by_is_told_by_the_overrides() -> None:
    def known(*overrides: str) -> tuple[str | None, ...]:
        record = record_of(overrides)
        return record["experiment"], record["study"], record["variant"]

    assert known("seed=1", "experiment=modern") == ("modern", None, None)
    assert known("experiment=none") == known("model=lstm") == (None, None, None)
    made = ("study=ladder", "experiment=modern", "variant=add_size")
    assert known(*made) == known(*made, "seed=1") == (None, "ladder", "add_size")


def test_the_record_repeats_the_run_outside_of_its_sweep() -> None:
    lines = ["sweep=ladder", "study=ladder", "a.b=1", "variant=x", "jobs=2", "only=x", "seed=1"]
    assert record_of(lines)["overrides"] == ["study=ladder", "a.b=1", "variant=x", "seed=1"]


def test_a_variant_stands_for_the_overrides_that_make_it() -> None:
    made = ["study=fair", "model=gated", "recipe=modern", "variant=context_200k"]
    beside = ["data=tiny30", "seed=2"]
    assert beside_variant([*made, *beside]) == beside
    assert beside_variant(beside) == beside
    assert run_folder([*made, *beside], 2) == "fair_context_200k,data=tiny30/seed=2"
    trial = ["optimizer.lr=0.1", "trial=t07"]
    assert run_name([*made, *trial, *beside]) == "fair_context_200k,data=tiny30,trial=t07"
    # Another choice of what the variant has chosen is one beside it.
    assert run_name([*made, "model=lstm", "name=mine"]) == "mine,fair_context_200k,model=lstm"


def test_a_name_in_any_script_fits_a_folder() -> None:
    first, second = (run_name([f"name={'漢' * 100}{number}"]) for number in (1, 2))
    assert first != second
    assert len(first.encode()) <= LONGEST


def test_no_name_leads_out_of_the_folder() -> None:
    assert run_name(["name=.."]) == "name=.."
    assert run_name(["name=../.."]) == "name=....."
    # A report leaves out what begins with `_`, and a shell what begins with a dot.
    assert [folder_name(text) for text in ("_a", ".a", "a/b", "a\0", "")] == [
        "name=_a", "name=.a", "a.b", "a", "default",
    ]  # fmt: skip
