"""A run in two processes follows the run in one, and goes on after an interruption."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Command, Compose, SetThreads

from newllm.data.batch import IGNORE, Batch
from newllm.data.module import TrainingLoader
from newllm.data.source import Split
from newllm.runs.directory import RunDirectory
from newllm.training.experiment import build_experiment
from newllm.training.processes import OwnNoise, Processes
from newllm.training.result import record_start

RUN = (
    *("recipe=modern", "data=tiny30", "countermeasure=none", "logger=none"),
    *("model.embedding_dim=8", "model.context_dim=8", "model.hidden_dim=8", "model.num_layers=2"),
)
NO_DROPOUT = [f"recipe.{name}dropout=0" for name in ("", "embedding_", "output_")]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    best: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "best.ckpt")["model"]
    return best


def steps_of(run: Path) -> list[dict[str, float]]:
    with (run / "steps.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "more",
    [
        ("data.batch_size=5", "trainer.max_epochs=3"),
        # Rows of several blocks, which DDP alone gets wrong.
        (
            *("recipe=task", "data=parity", "data.lengths=[130,150]", "trainer.max_steps=4"),
            *("data.evaluation_lengths=[8]", "data.evaluation_rows=4", "model.recompute=true"),
            "+trainer.accumulate_grad_batches=2",
        ),
    ],
    ids=["epochs", "recomputed"],
)
def test_two_processes_follow_one(command: Command, tmp_path: Path, more: tuple[str, ...]) -> None:
    spy = ("+callbacks.sizes={_target_: shard_sizes.ShardSizes}", "trusted_packages=[shard_sizes]")
    shutil.copy(Path(__file__).with_name("shard_sizes.py"), tmp_path)
    chosen = (*RUN, *NO_DROPOUT, *more, *spy)
    for number, strategy in ((1, "auto"), (2, "ddp"), (2, "fsdp")):
        devices = f"trainer.devices={number}", f"trainer.strategy={strategy}"
        done = command("newllm.train", *chosen, *devices, f"hydra.run.dir={strategy}")
        assert (done.returncode, done.stderr.count("Warning")) == (0, 0), done.stderr
    one = tmp_path / "auto"
    for strategy in ("ddp", "fsdp"):
        two = tmp_path / strategy
        for mine, theirs in zip(steps_of(two), steps_of(one), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
        of_one = weights_of(one)
        for name, weight in weights_of(two).items():
            torch.testing.assert_close(weight, of_one[name], atol=1e-3, rtol=1e-3)
        assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    for strategy, share in (("auto", 1.0), ("ddp", 1.0), ("fsdp", 0.5)):
        kept, of_all = json.loads((tmp_path / strategy / "sizes.json").read_text())
        assert kept / of_all == pytest.approx(share, abs=0.05)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_it_goes_on_after_an_interruption(tmp_path: Path, strategy: str) -> None:
    command = [sys.executable, "-m", "newllm.train"]
    chosen = [
        *RUN,
        "trainer.devices=2",
        f"trainer.strategy={strategy}",
        "data.batch_size=5",
        "trainer.max_epochs=80",
        "checkpoint_steps=10",
    ]

    def start(*overrides: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *overrides], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )

    interrupted = start(*chosen, "hydra.run.dir=interrupted")
    while not (tmp_path / "interrupted" / "checkpoints" / "last.ckpt").exists():
        assert interrupted.poll() is None, interrupted.communicate()
        time.sleep(0.01)
    interrupted.send_signal(signal.SIGINT)
    assert "resume it with" in interrupted.communicate()[1]
    resumed, whole = start("run=interrupted"), start(*chosen, "hydra.run.dir=whole")
    for process in (resumed, whole):
        told = process.communicate()[1]
        assert process.returncode == 0, told
    assert steps_of(tmp_path / "interrupted") == steps_of(tmp_path / "whole")
    theirs = weights_of(tmp_path / "whole")
    for name, weight in weights_of(tmp_path / "interrupted").items():
        assert torch.equal(weight, theirs[name]), name


class Numbered(Split):
    """Two batches of five rows and one of one row, with their numbers as tokens."""

    num_batches = 3
    metrics = ("loss",)

    def batch(self, epoch: int, number: int) -> Batch:
        rows_B = torch.arange(5 * number, 5 * number + (5 if number < 2 else 1))
        return Batch(rows_B[:, None], rows_B[:, None], rows_B)


def test_shares_are_the_rows_of_the_whole() -> None:
    whole = list(TrainingLoader(Numbered()))
    shares = [list(TrainingLoader(Numbered(), share=(rank, 2))) for rank in range(2)]
    for batch, *of_batch in zip(whole, *shares, strict=True):
        scored = torch.cat([share.row_B[share.scored_BT[:, 0]] for share in of_batch])
        assert sorted(scored.tolist()) == batch.row_B.tolist()
        assert all(len(share.row_B) for share in of_batch)
    assert (shares[1][2].targets_BT == IGNORE).all()  # one row does not reach for two processes


def test_noise_depends_on_process_and_step_alone() -> None:
    class Place:
        def __init__(self, epoch: int) -> None:
            self.current_epoch = epoch

    def draw(rank: int, epoch: int, batch: int) -> float:
        OwnNoise(1, rank).on_train_batch_start(Place(epoch), None, None, batch)  # type: ignore[arg-type]
        return float(torch.rand(()))

    places = [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]
    draws = [draw(*place) for place in places]
    assert len(set(draws)) == len(places)
    assert draws == [draw(*place) for place in places]


@pytest.mark.parametrize(
    ("chosen", "fault"),
    [
        (("trainer.strategy=ddp",), r"devices=1 trainer.strategy=ddp: must be auto"),
        (("trainer.strategy=fsdp",), r"devices=1 trainer.strategy=fsdp: must be auto"),
        (
            (
                *("trainer.devices=2", "trainer.strategy=fsdp"),
                "+callbacks.average={_target_: lightning.pytorch.callbacks.EMAWeightAveraging}",
            ),
            "trainer.strategy=fsdp: takes no callback that averages weights",
        ),
        (
            ("trainer.devices=2", "trainer.strategy=ddp_spawn"),
            r"devices=2 trainer.strategy=ddp_spawn: must be auto",
        ),
    ],
)
def test_other_strategies_are_refused(
    compose_config: Compose, tmp_path: Path, chosen: tuple[str, ...], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        build_experiment(compose_config(*RUN, *chosen), tmp_path)


def test_streams_and_too_few_rows_are_refused(compose_config: Compose, tmp_path: Path) -> None:
    config = compose_config(*RUN, "trainer.devices=31")
    with pytest.raises(ValueError, match=r"trainer.devices=31: a batch has 16 rows to share"):
        build_experiment(config, tmp_path)
    config = compose_config("trainer.devices=2", "countermeasure=none", "logger=none")
    config.data = {"_target_": "copy_task.Stream"}
    config.trusted_packages = ["copy_task"]
    with pytest.raises(ValueError, match="continue across batches, which takes one device"):
        build_experiment(config, tmp_path)


def slow_run(folder: Path) -> subprocess.Popen[str]:
    chosen = [*RUN, "trainer.devices=2", "trainer.max_epochs=100000", "hydra.run.dir=run"]
    return subprocess.Popen(
        [sys.executable, "-m", "newllm.train", *chosen],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def other_process_of(run: subprocess.Popen[str]) -> int:
    """The id of the process that a run has started."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    while True:
        assert run.poll() is None, run.communicate()
        for child in children.read_text().split():
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                return int(child)
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.parametrize("is_training", [False, True])
def test_a_process_that_is_killed_ends_the_run(tmp_path: Path, is_training: bool) -> None:
    run = slow_run(tmp_path)
    other = other_process_of(run)
    while is_training and not (tmp_path / "run" / "metrics.csv").exists():
        time.sleep(0.01)
    os.kill(other, signal.SIGKILL)
    told = run.communicate(timeout=60)[1]
    assert run.returncode == 1
    assert "process 1 was killed by SIGKILL" in told
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["error"][-7:]) == ("failed", "SIGKILL")


@pytest.mark.long
def test_an_interruption_while_the_others_start(tmp_path: Path) -> None:
    run = slow_run(tmp_path)
    other = other_process_of(run)
    os.kill(other, signal.SIGINT)  # as a terminal sends it to all
    run.send_signal(signal.SIGINT)
    told = run.communicate(timeout=60)[1]
    assert run.returncode == 130
    assert "Traceback" not in told
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)


def test_a_divergence_is_told_once(command: Command) -> None:
    chosen = (*RUN, "trainer.devices=2", "trainer.max_epochs=2", "optimizer.lr=1e30")
    done = command("newllm.train", *chosen, "hydra.run.dir=run")
    assert (done.returncode, done.stderr.count("try a lower optimizer.lr")) == (1, 1), done.stderr


def test_the_recorded_threads_are_those_of_all_processes(
    compose_config: Compose, threads: SetThreads, tmp_path: Path
) -> None:
    """A run that goes on sets as many, which are then divided."""
    threads(4)
    config = compose_config(*RUN, "trainer.devices=2")
    with Processes(config):
        assert torch.get_num_threads() == 2
        run = RunDirectory(tmp_path / "run")
        record_start(run, build_experiment(config, tmp_path / "run"), [])
    assert run.result["threads"] == 4
    run.release()


def test_threads_and_environment_are_given_back(compose_config: Compose) -> None:
    before = torch.get_num_threads(), dict(os.environ)
    with Processes(compose_config("trainer.devices=2")):
        assert os.environ["LOCAL_RANK"] == "0"
    assert (torch.get_num_threads(), dict(os.environ)) == before
