"""A run in two processes follows the run in one, and goes on after an interruption."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Command, Compose

from newllm.data.batch import IGNORE, Batch
from newllm.data.module import TrainingLoader
from newllm.data.source import Split
from newllm.training.experiment import build_experiment
from newllm.training.processes import OwnNoise

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
    chosen = (*RUN, *NO_DROPOUT, *more)
    for number in (1, 2):
        done = command(
            "newllm.train", *chosen, f"trainer.devices={number}", f"hydra.run.dir=run{number}"
        )
        assert (done.returncode, done.stderr.count("Warning")) == (0, 0), done.stderr
    one, two = tmp_path / "run1", tmp_path / "run2"
    for mine, theirs in zip(steps_of(two), steps_of(one), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    theirs = weights_of(one)
    for name, weight in weights_of(two).items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-3, rtol=1e-3)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    assert (two / "log.txt").exists() == (one / "log.txt").exists()


@pytest.mark.long
def test_it_goes_on_after_an_interruption(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "newllm.train"]
    chosen = [
        *RUN,
        "trainer.devices=2",
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
        (("trainer.devices=2", "trainer.strategy=fsdp"), r"trainer: .*fsdp.* requires a GPU"),
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
