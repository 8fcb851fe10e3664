"""A run on a cluster, and jobs by any launcher: what the process's exit code says."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_CONTEXT, Compose
from hydra.core.utils import JobReturn, JobStatus
from lightning.pytorch.utilities import rank_zero_only

from newllm.runs.directory import RunDirectory
from newllm.sweeps.each import Each
from newllm.train import main
from newllm.training.experiment import build_experiment

CLUSTERS = {
    "slurm": {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "1"},
    "slurm, not its first": {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_JOB_ID": "1"},
    "torchrun": {
        **dict.fromkeys(("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"),
        **{"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "1"},
        **{"MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
    },
    "lsf": {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "none", "JSM_NAMESPACE_SIZE": "2"},
    "kubeflow": {"KUBERNETES_PORT": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1", "RANK": "1"},
}


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_run_is_one_process_on_any_cluster(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str
) -> None:
    for name, value in CLUSTERS[cluster].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 3)  # as a cluster's variables would make it
    config = compose_config("data=tiny30", "logger=none", *TINY_CONTEXT)
    trainer = build_experiment(config, tmp_path).trainer
    assert (trainer.world_size, trainer.global_rank, trainer.is_global_zero) == (1, 0, True)
    assert rank_zero_only.rank == 0, "there would be no events"


Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The program in this process; returns its exit code."""

    def start(*arguments: str) -> int:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["newllm.train", *arguments])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return start


TINY = (
    *("data=tiny30", "countermeasure=none", "logger=none", "callbacks=none", *TINY_CONTEXT),
    *("trainer.max_epochs=1", "normalization=none", "recipe.gradient_clip=[]"),
)


def test_a_launcher_of_hydras_own(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ("-m", "hydra/launcher=basic", *TINY, "name=some")
    assert run(*sweep) == 0
    assert run(*sweep, "seed=1,2", "optimizer.lr=1e30") == 1
    assert run(*sweep, "data.max_length=2") == 1  # which fails before there is a result
    statuses = [json.loads(file.read_text())["status"] for file in tmp_path.rglob("result.json")]
    assert sorted(statuses) == ["diverged", "diverged", "done", "failed"]
    assert "Traceback" not in capsys.readouterr().err
    assert run(*sweep) == 0, "what is done is done"
    assert run(*sweep, "seed=1,2", "optimizer.lr=1e30") == 1, "what diverged would do so again"


def test_a_launcher_of_hydras_own_makes_room(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ("-m", "hydra/launcher=basic", *TINY, "name=some")
    assert run(*sweep) == 0
    other = (*sweep, "test=false")  # in the same folder
    assert run(*other) == 1
    assert "contains a run with another configuration" in capsys.readouterr().err
    (folder,) = (file.parent for file in tmp_path.rglob("result.json"))
    owner = RunDirectory(folder, goes_on=True)
    assert run(*other, "overwrite=true") == 1
    assert f"{folder}: another process is writing here; wait for it" in capsys.readouterr().err
    owner.release()
    assert run(*other, "overwrite=true") == 0
    assert (folder / "result.json").exists()
    (moved,) = (tmp_path / "outputs" / "runs" / "_replaced").rglob("result.json")
    assert moved.parent.parts[-2:] == folder.parts[-2:]


def test_a_single_run_that_fails(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*TINY, "data.max_length=2") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert run(*TINY, "optimizer.lr=1e30") == 1


@pytest.mark.parametrize(
    ("values", "code"),
    [((1.0, 2.0), 0), ((None, None), 0), ((1.0, math.inf), 1), ((math.nan,), 1), ((), 0)],
)
def test_the_exit_code_is_told_by_what_jobs_return(
    monkeypatch: pytest.MonkeyPatch, values: tuple[Any, ...], code: int
) -> None:
    returns = []
    for value in values:
        job = JobReturn(status=JobStatus.COMPLETED)
        job.return_value = value
        returns.append(job)
    sweeper = Each.__new__(Each)  # its own part alone
    monkeypatch.setattr(sweeper, "run_all", lambda _: [returns])
    monkeypatch.setattr(sweeper, "_finish", lambda _: None)
    if code:
        with pytest.raises(SystemExit, match=str(code)):
            sweeper.sweep([])
    else:
        assert sweeper.sweep([]) == [returns]


def test_a_launcher_that_fails_itself_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: list[str]) -> None:
        raise RuntimeError("a worker was killed\nand more of it")

    sweeper = Each.__new__(Each)  # its own part alone
    monkeypatch.setattr(sweeper, "run_all", fail)
    with pytest.raises(SystemExit):
        sweeper.sweep([])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "RuntimeError: a worker was killed (set HYDRA_FULL_ERROR=1 for a traceback)"
