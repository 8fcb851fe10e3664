"""The trials of a search, and a sweep that goes on with the best of them."""

import itertools
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from conftest import Command, Compose

from newllm.config.study_file import sweeper_of
from newllm.config.trials import draw_trials
from newllm.runs.identity import config_hash
from newllm.studies.fair.results import expected_best
from newllm.sweeps.jobs import Job
from newllm.sweeps.sweep import sweep

SPACE = sweeper_of("fair")["trials"]["space"]
# Layers, learning rate, weight decay, three dropouts: as they were before any of them was run.
DRAWN = """
    1 0.00121 0.799 0.259 0.667 0.619
    4 0.0028 0.0694 0.229 0.59 0.544
    2 0.00401 0.149 0.096 0.43 0.0775
    1 0.00174 0.426 0.274 0.476 0.147
    2 0.00131 0.995 0.143 0.263 0.522
    4 0.000618 0.048 0.223 0.204 0.32
    4 0.00352 0.143 0.0099 0.498 0.254
    2 0.000643 0.605 0.222 0.607 0.298
    4 0.00566 0.0626 0.21 0.591 0.395
    2 0.00207 0.408 0.23 0.536 0.573
    4 0.00213 0.219 0.287 0.301 0.0997
    1 0.00527 0.0175 0.28 0.472 0.5
    4 0.001 0.0637 0.399 0.384 0.453
    4 0.00189 0.587 0.173 0.206 0.188
    1 0.000758 0.581 0.384 0.562 0.649
    2 0.00644 0.0331 0.194 0.358 0.578
"""


def test_the_trials_are_those_that_were_drawn() -> None:
    trials = draw_trials(**sweeper_of("fair")["trials"])
    values = [[line.partition("=")[2] for line in trial] for trial in trials]
    assert values == [line.split() for line in DRAWN.strip().splitlines()]


def test_trials_fill_the_space() -> None:
    trials = [dict(line.split("=") for line in trial) for trial in draw_trials(SPACE, 3000)]
    assert {trial["model.num_layers"] for trial in trials} == {"1", "2", "4"}
    for key, ends in list(SPACE.items())[1:]:
        values = np.array([float(trial[key]) for trial in trials])
        low, high = ends["low"], ends["high"]
        assert values.min() >= low * 0.999
        assert values.max() <= high * 1.001
        middle = (low * high) ** 0.5 if ends.get("log") else (low + high) / 2
        assert (values < middle).mean() == pytest.approx(0.5, abs=0.03)


def test_fewer_trials_are_the_first_of_more() -> None:
    assert draw_trials(SPACE, 3, seed=7) == draw_trials(SPACE, 5, seed=7)[:3]


def test_a_grid_has_every_combination() -> None:
    space = {"optimizer.lr": {"choices": ["1e-3", 2e-3]}, "model.num_layers": {"choices": [1, 2]}}
    assert draw_trials(space) == [
        ["optimizer.lr=1e-3", "model.num_layers=1"],
        ["optimizer.lr=1e-3", "model.num_layers=2"],
        ["optimizer.lr=0.002", "model.num_layers=1"],
        ["optimizer.lr=0.002", "model.num_layers=2"],
    ]


def test_expected_best_is_the_mean_over_all_choices() -> None:
    generator = random.Random(1)
    losses = [generator.random() for _ in range(6)] + [0.5, 0.5]
    found = expected_best(losses)
    for number in range(1, len(losses) + 1):
        every = [min(chosen) for chosen in itertools.combinations(losses, number)]
        assert found[number - 1] == pytest.approx(sum(every) / len(every))


# A study of the user's own, beside the package's.
STUDY = """
# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    params: {seed: "1", test: "false", logger: none, callbacks: none}
    variants:
      lstm: [&all [data=tiny30, recipe.max_epochs=2, model.embedding_dim=8], model=lstm]
      elman: [*all, model=elman, model.hidden_dim=8]
      left_out: [model=gru]
    trials: {number: 2, seed: 1, space: {optimizer.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}}
    then: THEN
"""
THEN = "{a: {seed: '2,3', test: 'true'}, b: {only: elm*, data.seed: '1', seed: '2'}}"
SEARCH = ("newllm.train", "--config-dir", "conf", "sweep=mine", "only=lstm,elm*")
ONE = "hydra.sweeper.trials.number=1"


Search = Callable[..., CompletedProcess[str]]


@pytest.fixture
def search(command: Command, tmp_path: Path) -> Search:
    """Run that study, or one with another second stage."""
    (tmp_path / "conf" / "sweep").mkdir(parents=True)

    def run(*arguments: str, then: str = THEN) -> CompletedProcess[str]:
        text = STUDY.strip().replace("THEN", then)
        (tmp_path / "conf" / "sweep" / "mine.yaml").write_text(text)
        return command(*SEARCH, *arguments)

    return run


def results(top: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(top.rglob("result.json"))]


def chosen(result: dict[str, Any], key: str) -> str:
    """The last of the values that a run was given for a key."""
    return dict(line.split("=", 1) for line in result["overrides"])[key]


def test_the_best_trial_of_each_goes_on(command: Command, search: Search, tmp_path: Path) -> None:
    done = search()
    assert done.returncode == 0, done.stderr
    runs = results(tmp_path)
    assert len(runs) == 4 + 4 + 1
    assert {(run["study"], run["experiment"]) for run in runs} == {("mine", None)}
    for variant in ("lstm", "elman"):
        own = [run for run in runs if run["variant"] == variant]
        trials = {chosen(run, "trial"): run for run in own if run["seed"] == 1}
        assert trials.keys() == {"t01", "t02"}
        assert all(trial["test_loss"] is None for trial in trials.values())
        best = min(trials, key=lambda name: trials[name]["best_val_loss"])
        again = [run for run in own if run["seed"] != 1]
        assert {chosen(run, "trial") for run in again} == {best}
        assert {(run["seed"], "data.seed=1" in run["overrides"]) for run in again} == (
            {(2, False), (3, False)} | ({(2, True)} if variant == "elman" else set())
        )
    # The same command finds all of it done.
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")}
    assert search().stdout.count("done before") == 9
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")} == times
    # What a run says of itself repeats it.
    (run,) = [r for r in runs if "data.seed=1" in r["overrides"]]
    done = command("newllm.train", *run["overrides"], "hydra.run.dir=again")
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert again["config_hash"] == run["config_hash"]
    assert (again["study"], again["variant"]) == ("mine", "elman")


def test_a_variant_whose_trials_all_fail_does_not_go_on(search: Search, tmp_path: Path) -> None:
    done = search(ONE, "recipe=modern", "optimizer.lr=1e30", "recipe.gradient_clip=[]")
    assert done.returncode == 1
    assert len(re.findall(r"seed=1 +diverged", done.stdout)) == 2
    assert len(results(tmp_path)) == 2


def test_a_trial_that_diverged_is_none_of_the_best(compose_config: Compose, tmp_path: Path) -> None:
    config = compose_config("data=tiny30")
    jobs = [Job(config, (), tmp_path / name) for name in ("good", "bad")]
    results = {"good": ("done", 1.9), "bad": ("diverged", 1.7)}  # the latter was better before
    for job in jobs:
        status, loss = results[job.folder.name]
        result = {"status": status, "best_val_loss": loss, "config_hash": config_hash(config)}
        (job.folder / "checkpoints").mkdir(parents=True)
        (job.folder / "checkpoints" / "best.ckpt").touch()
        (job.folder / "result.json").write_text(json.dumps(result))
    assert sweep(jobs, tmp_path, "none") == [1.9, math.inf]


def test_a_variant_waits_for_a_trial_that_failed(search: Search, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "runs" / "mine_elman,trial=t02" / "seed=1"
    folder.mkdir(parents=True)
    (folder / "checkpoints").write_text("a file in the way of a folder")
    done = search()
    assert done.returncode == 1
    assert "elman: 1 of its trials failed" in done.stderr
    assert "Traceback" not in done.stderr
    went_on = {result["variant"] for result in results(tmp_path) if result["seed"] != 1}
    assert went_on == {"lstm"}
    # Mended, the same command does what is missing.
    (folder / "checkpoints").unlink()
    done = search()
    assert done.returncode == 0, done.stderr
    found = [(result["status"], result.get("error")) for result in results(tmp_path)]
    assert found == [("done", None)] * 9


def test_a_plan_of_a_search_says_that_more_follows(search: Search) -> None:
    done = search(ONE, "plan=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("steps planned") == 2
    assert "then the best trial of each variant is run again" in done.stderr


@pytest.mark.parametrize(
    ("entry", "fault"),
    [("model.heads: '2'", "heads"), ("gating: lstm", "is not used")],
)
def test_faults_of_the_second_stage_are_told_before_the_first(
    search: Search, tmp_path: Path, entry: str, fault: str
) -> None:
    done = search(ONE, then=f"{{a: {{{entry}}}}}")
    assert done.returncode == 1
    assert fault in done.stderr
    assert "Traceback" not in done.stderr
    assert not results(tmp_path)


@pytest.mark.parametrize(
    ("seed", "fault"),
    [
        (
            "1,4",
            "seed=1,4: trials have one seed; set several for the second stage (hydra.sweeper.then)",
        ),
        (
            "3",
            "seed=3: is a seed of the second stage; choose another one for the trials, or for "
            "hydra.sweeper.then",
        ),
    ],
)
def test_trials_have_a_seed_of_their_own(
    search: Search, tmp_path: Path, seed: str, fault: str
) -> None:
    """Studies compare trials of one seed, and a later run would have the folder of a trial."""
    done = search(ONE, f"seed={seed}")
    assert (done.returncode, done.stderr.splitlines()) == (1, [fault])
    assert not results(tmp_path)
