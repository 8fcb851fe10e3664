"""The trials of a search, and a sweep that goes on with the best of them."""

import itertools
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, Compose
from newllm.studies.fair.trials import (
    LAYERS,
    LOGARITHMIC,
    NUM_TRIALS,
    UNIFORM,
    draw_trials,
    expected_best,
    trial_file,
)
from omegaconf import OmegaConf

from newllm.config.composing import conf_directory
from newllm.config.naming import run_folder
from newllm.runs.identity import config_hash
from newllm.sweeps.jobs import Job
from newllm.sweeps.sweep import sweep


def test_the_trials_are_those_that_were_drawn() -> None:
    files = sorted((conf_directory() / "trial").glob("t*.yaml"))
    assert [file.read_text() for file in files] == [trial_file(t) for t in draw_trials()]
    assert len(files) == NUM_TRIALS


def test_trials_fill_the_space() -> None:
    trials = draw_trials(number=3000)
    assert {trial["model.num_layers"] for trial in trials} == set(LAYERS)
    for key, (low, high) in (LOGARITHMIC | UNIFORM).items():
        values = np.array([trial[key] for trial in trials])
        assert values.min() >= low * 0.999
        assert values.max() <= high * 1.001
        middle = (low * high) ** 0.5 if key in LOGARITHMIC else (low + high) / 2
        assert (values < middle).mean() == pytest.approx(0.5, abs=0.03)


def test_a_trial_sets_what_it_says(compose_config: Compose) -> None:
    for number, trial in enumerate(draw_trials(), start=1):
        config = compose_config("experiment=fair_context_200k", f"trial=t{number:02}")
        for key, value in trial.items():
            assert OmegaConf.select(config, key) == value
        assert config.model.dropout == trial["recipe.dropout"]
        assert config.schedule.scheduler.max_lr == trial["optimizer.lr"]


def test_expected_best_is_the_mean_over_all_choices() -> None:
    generator = random.Random(1)
    losses = [generator.random() for _ in range(6)] + [0.5, 0.5]
    found = expected_best(losses)
    for number in range(1, len(losses) + 1):
        every = [min(chosen) for chosen in itertools.combinations(losses, number)]
        assert found[number - 1] == pytest.approx(sum(every) / len(every))


SEARCH = (
    *("newllm.train", "sweep=fair", "experiment=fair_lstm_200k,fair_elman_700k"),
    *("data=tiny30", "budget.parameters=6000", "recipe.max_epochs=2"),
    "hydra.sweeper.then=[{seed: '2,3', test: 'true'}, {only: '*_700k', data.seed: '1', seed: '2'}]",
)


def test_the_best_trial_of_each_goes_on(command: Command, tmp_path: Path) -> None:
    done = command(*SEARCH, "trial=t01,t03")
    assert done.returncode == 0, done.stderr
    runs = {
        str(file.parent.relative_to(tmp_path / "outputs" / "runs")): json.loads(file.read_text())
        for file in tmp_path.rglob("result.json")
    }
    assert len(runs) == 4 + 4 + 1
    for experiment in ("fair_lstm_200k", "fair_elman_700k"):
        shared = [f"experiment={experiment}", *SEARCH[3:6]]
        trials = {t: runs[run_folder([*shared, f"trial={t}"], 1)] for t in ("t01", "t03")}
        assert all(trial["test_loss"] is None for trial in trials.values())
        best = min(trials, key=lambda name: trials[name]["best_val_loss"])
        for seed in (2, 3):
            assert runs[run_folder([*shared, f"trial={best}"], seed)]["status"] == "done"
        redrawn = run_folder([*shared, f"trial={best}", "data.seed=1"], 2)
        assert (redrawn in runs) == (experiment == "fair_elman_700k")
    # The same command finds all of it done.
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")}
    assert command(*SEARCH, "trial=t01,t03").stdout.count("done before") == 9
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("result.json")} == times


def test_an_experiment_whose_trials_all_fail_does_not_go_on(
    command: Command, tmp_path: Path
) -> None:
    done = command(*SEARCH, "trial=t01", "optimizer.lr=1e30", "recipe.gradient_clip=[]")
    assert done.returncode == 1
    assert len(re.findall(r"seed=1 +diverged", done.stdout)) == 2
    assert len(list(tmp_path.rglob("result.json"))) == 2


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
    assert sweep(jobs, tmp_path) == [1.9, math.inf]


def test_an_experiment_waits_for_a_trial_that_failed(command: Command, tmp_path: Path) -> None:
    shared = [f"experiment={SEARCH[2].split(',')[1]}", *SEARCH[3:6]]
    folder = tmp_path / "outputs" / "runs" / run_folder([*shared, "trial=t03"], 1)
    folder.mkdir(parents=True)
    (folder / "checkpoints").write_text("a file in the way of a folder")
    done = command(*SEARCH, "trial=t01,t03")
    assert done.returncode == 1
    assert "fair_elman_700k: 1 of its trials failed" in done.stderr
    assert "Traceback" not in done.stderr
    results = [json.loads(file.read_text()) for file in tmp_path.rglob("result.json")]
    went_on = {result["experiment"] for result in results if result["seed"] != 1}
    assert went_on == {"fair_lstm_200k"}
    # Mended, the same command does what is missing.
    (folder / "checkpoints").unlink()
    done = command(*SEARCH, "trial=t01,t03")
    assert done.returncode == 0, done.stderr
    results = [json.loads(file.read_text()) for file in tmp_path.rglob("result.json")]
    assert len(results) == 9
    assert [(result["status"], result.get("error")) for result in results] == [("done", None)] * 9


def test_a_plan_of_a_search_says_that_more_follows(command: Command) -> None:
    done = command(*SEARCH, "trial=t01", "plan=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("steps planned") == 2
    assert "then the best job of each experiment again" in done.stderr


@pytest.mark.parametrize(
    ("entry", "fault"),
    [("model.heads: '2'", "heads"), ("gating: lstm", "does not read it")],
)
def test_faults_of_the_second_stage_are_told_before_the_first(
    command: Command, tmp_path: Path, entry: str, fault: str
) -> None:
    done = command(*SEARCH[:-1], "trial=t01", f"hydra.sweeper.then=[{{{entry}}}]")
    assert done.returncode == 1
    assert fault in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("result.json"))


def test_a_search_is_over_experiments(command: Command) -> None:
    done = command(
        *("newllm.train", "-m", "hydra/sweeper=search", "data=tiny30", "seed=1,2"),
        *("logger=none", "callbacks=none", "trainer=smoke"),
    )
    assert done.returncode == 1
    assert "add experiment=NAME" in done.stderr
