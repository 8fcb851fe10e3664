"""The file of a study: its variants, the jobs that they make, and a part of them by name."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY_CONTEXT, Command, faults_of
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext

from newllm.config.composing import conf_directory
from newllm.config.study_file import then_of, variants_of
from newllm.config.sweeper import FORMS
from newllm.runs.gathering import Run
from newllm.runs.identity import config_hash
from newllm.sweeps.each import Each
from newllm.sweeps.plugins import register_plugins


def test_the_series_is_one_sweep_of_all_its_experiments() -> None:
    variants = variants_of("series")
    assert len(variants) == 27
    assert not any(variants.values())  # each is the experiment of its name
    assert all((conf_directory() / "experiment" / f"{name}.yaml").is_file() for name in variants)


def test_a_part_of_a_study_is_planned_and_nothing_runs(command: Command, tmp_path: Path) -> None:
    """Jobs that differ in their seed alone are timed once."""
    part = ("sweep=series", "only=phase1_w*,phase3_gating", "seed=1,2,3", *TINY_CONTEXT)
    done = command("newllm.train", *part, "plan=true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("steps planned") == 3
    heading = r"^--- (\w+),.* seed=1 and 2 more, with other seeds$"
    jobs = re.findall(heading, done.stdout, re.MULTILINE)
    assert sorted(jobs) == ["phase1_wide", "phase1_wide_long", "phase3_gating"]
    assert "--- 9 jobs to do: about " in done.stdout
    assert "GPU available" not in done.stdout + done.stderr
    assert not list(tmp_path.rglob("result.json"))
    assert not (tmp_path / "data").exists()


def test_a_pattern_that_matches_no_variant_is_told(command: Command, tmp_path: Path) -> None:
    done = command("newllm.train", "sweep=ladder", "only=add_*,nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("only=nothing: matches no variant; variants: original, modern, ")
    done = command("newllm.train", "sweep=ladder", "only=add_sise")
    assert done.stderr == "only=add_sise: matches no variant; did you mean add_size?\n"
    done = command("newllm.train", "-m", "seed=1,2", "only=nothing")
    assert done.returncode == 1
    assert done.stderr == (
        "only=nothing: matches no variant; variants: none (a sweep of values only)\n"
    )
    assert not list(tmp_path.rglob("result.json"))


SMALL = """# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    params: {seed: "1,2"}
    variants:
      a: [data=tiny30]
"""


@pytest.mark.parametrize(
    ("there", "instead", "fault"),
    [
        ("# @package _global_", "# mine", "its first line must be `# @package _global_`"),
        ("mode: MULTIRUN", "verbose: false", "`mode: MULTIRUN` is missing under `hydra`"),
        ("variants:", "varients:", "hydra.sweeper.varients: unknown; known keys: params, variants, "
         "trials, then, baselines"),
        ('"1,2"', "[1, 2]", "hydra.sweeper.params.seed: must be a text, such as "
         "'1,2' for two values"),
        ("[data=tiny30]", "{data: tiny30}", "hydra.sweeper.variants.a: must be a list of "
         "overrides, such as [model=lstm]"),
        ("[data=tiny30]", "[[data=tiny30], [data]]", "hydra.sweeper.variants.a: data: not an "
         "override; write KEY=VALUE, quoting special characters"),
        ("variants:", "then: 3\n    variants:", f"hydra.sweeper.then=3: must be {FORMS['then']}"),
    ],
)  # fmt: skip
def test_a_fault_of_a_study_file_is_one_line(
    tmp_path: Path, there: str, instead: str, fault: str
) -> None:
    register_plugins()
    file = tmp_path / "sweep" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(SMALL)
    arguments = ["--config-dir", str(tmp_path), "sweep=mine"]
    assert faults_of(arguments) == []
    file.write_text(SMALL.replace(there, instead))
    assert faults_of(arguments) == [f"sweep/mine.yaml: {fault}"]


def test_a_study_without_a_second_stage() -> None:
    assert then_of("ladder") == {}


MINE = """
# @package _global_
only: "a*,lstm"
hydra:
  mode: MULTIRUN
  sweeper:
    params: {seed: "1,2", model.embedding_dim: "8,4", recipe.max_epochs: "1"}
    variants:
      lstm: ["seed=3,4"]
      again: [&shared [data=tiny30, model=gru], model.embedding_dim=6, "data.seed=1,2"]
      apart: [*shared, model.hidden_dim=8]
      left_out: [no.such.key=1]
    then:
      corpora: {only: ap*, data.seed: "5", seed: "1"}
"""


def jobs_of(arguments: list[str], tmp_path: Path) -> list[list[str]]:
    """The overrides of the jobs of a study, with `MINE` among its sweeps."""
    file = tmp_path / "sweep" / "mine.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(MINE.strip())
    register_plugins()
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        config = compose(
            "config",
            overrides=[f"hydra.searchpath=[file://{tmp_path}]", "sweep=mine"],
            return_hydra_config=True,
        )
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
        node = config.hydra.sweeper
        sweeper = Each(node.params, node.variants, node.trials, node.then)
        sweeper.setup(hydra_context=context, task_function=lambda _: None, config=config)
        jobs: list[list[str]] = []
        launch = SimpleNamespace(launch=lambda found, initial_job_idx: jobs.extend(found) or [])
        sweeper.launcher = launch  # type: ignore[assignment]
        sweeper.run_all(arguments)
    return jobs


def test_the_jobs_of_a_study(tmp_path: Path) -> None:
    jobs = [" ".join(job) for job in jobs_of(["recipe.max_epochs=9"], tmp_path)]
    lstm = [
        f"experiment=lstm model.embedding_dim={size} recipe.max_epochs=9 seed={seed}"
        for seed in (3, 4) for size in (8, 4)
    ]  # fmt: skip
    made = "study=mine data=tiny30 model=gru model.embedding_dim=6 variant=again"
    again = [
        f"{made} seed={seed} recipe.max_epochs=9 data.seed={corpus}"
        for seed in (1, 2) for corpus in (1, 2)
    ]  # fmt: skip
    made = "study=mine data=tiny30 model=gru model.hidden_dim=8 variant=apart"
    apart = [
        f"{made} {' '.join(chosen)} recipe.max_epochs=9{corpus}"
        for chosen, corpus in (
            *(((f"seed={s}", f"model.embedding_dim={e}"), "") for s in (1, 2) for e in (8, 4)),
            *((("seed=1", f"model.embedding_dim={e}"), " data.seed=5") for e in (8, 4)),
        )
    ]

    def alike(lines: list[str]) -> list[list[str]]:
        return sorted(sorted(line.split()) for line in lines)

    assert alike(jobs) == alike([*lstm, *again, *apart])
    # What makes a variant stands before its name, all else behind it.
    assert all(job.startswith(made) for job in jobs if "apart" in job)
    assert jobs_of(["only=apart", "seed=7", "model.embedding_dim=2"], tmp_path) == [
        [*made.split(), "seed=7", "model.embedding_dim=2", "recipe.max_epochs=1"],
        [*made.split(), "seed=1", "model.embedding_dim=2", "recipe.max_epochs=1", "data.seed=5"],
    ]


COMPARED = """
# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    params: {seed: "1"}
    variants: {small: [data=tiny30, model.embedding_dim=6]}
    baselines: {lstm: [model=lstm, model.num_layers=1], gru: [model=gru]}
    trials: {space: {optimizer.lr: {choices: [0.1, 0.2]}}}
    then: {seeds: {seed: "2"}}
"""


def compared(
    tmp_path: Path, losses: Mapping[str, float], *arguments: str, study: str = COMPARED
) -> tuple[list[str], list[str]]:
    """The jobs of both stages of a study, given the loss of each model and rate."""
    (tmp_path / "sweep").mkdir(exist_ok=True)
    (tmp_path / "sweep" / "compared.yaml").write_text(study.strip())
    register_plugins()
    stages: list[list[str]] = []

    def launch(jobs: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
        stages.append([" ".join(job) for job in jobs])
        returns = []
        for job in jobs:
            chosen = dict(line.split("=", 1) for line in job)
            returned = JobReturn(status=JobStatus.COMPLETED)
            returned.return_value = losses[chosen["model"] + chosen["optimizer.lr"]]
            returns.append(returned)
        return returns

    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        config = compose(
            "config",
            overrides=[f"hydra.searchpath=[file://{tmp_path}]", "sweep=compared"],
            return_hydra_config=True,
        )
        config.hydra.overrides.hydra = [f"hydra.searchpath=[file://{tmp_path}]"]
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
        node = config.hydra.sweeper
        sweeper = Each(node.params, node.variants, node.trials, node.then, node.baselines)
        sweeper.setup(hydra_context=context, task_function=lambda _: None, config=config)
        sweeper.launcher = SimpleNamespace(launch=launch)  # type: ignore[assignment]
        sweeper.run_all(list(arguments))
    trials, again = [*stages, []][:2]
    return trials, again


LOSSES = {
    **{"gated0.1": 1.0, "gated0.2": 2.0, "context0.1": 2.0, "context0.2": 1.0},
    **{"lstm0.1": 1.0, "lstm0.2": 2.0, "gru0.1": 2.0, "gru0.2": 1.0},
}


def test_each_model_has_a_best_trial_and_baselines_have_theirs(tmp_path: Path) -> None:
    trials, again = compared(tmp_path, LOSSES, "model=gated,context")
    assert len(trials) == 8
    found = [re.search(r"lr=(\S+) .*model=(\w+)", job) for job in again]
    assert [(match[2], match[1]) for match in found if match] == [
        ("gated", "0.1"), ("context", "0.2"), ("lstm", "0.1"), ("gru", "0.2")
    ]  # fmt: skip


def test_a_baseline_is_not_run_twice(tmp_path: Path) -> None:
    trials, _ = compared(tmp_path, LOSSES, "model.num_layers=1", "model=lstm")
    assert [re.findall(r"model=(\w+)", job) for job in trials] == [["lstm"]] * 2 + [["gru"]] * 2


@pytest.mark.parametrize("num_done", [2, 1])
@pytest.mark.parametrize(
    ("study", "differing"),
    [
        (COMPARED, ("optimizer.lr=0.1", "optimizer.lr=0.2")),
        (COMPARED.partition("    trials:")[0].replace('"1"', '"1,2"'), ("seed=1", "seed=2")),
    ],
    ids=["trials", "seeds"],
)
def test_a_baseline_is_not_run_if_all_of_its_results_are_committed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    study: str,
    differing: Sequence[str],
    num_done: int,
) -> None:
    made_of = ["data=tiny30", "model=gru", "model.embedding_dim=6", "optimizer.lr=0.1", "seed=1"]
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        configs = [compose("config", [*made_of, line]) for line in differing[:num_done]]
    runs = [Run("there", {"status": "done", "config_hash": config_hash(c)}) for c in configs]
    monkeypatch.setattr("newllm.runs.gathering.committed", lambda study: runs)
    lr = () if study == COMPARED else ("optimizer.lr=0.1",)
    jobs, _ = compared(tmp_path, LOSSES, "model=gated", *lr, study=study)
    models = {re.findall(r"model=(\w+)", job)[0] for job in jobs}
    assert models == {"gated", "lstm"} | ({"gru"} if num_done < 2 else set())


def test_a_baseline_with_a_fault_is_told_by_the_launcher(tmp_path: Path) -> None:
    """With the name of its job, and with the faults of the others."""
    trials, _ = compared(tmp_path, LOSSES, "model=gated", "recipe.fnn=plain")
    assert {re.findall(r"model=(\w+)", job)[0] for job in trials} == {"gated", "lstm", "gru"}
