"""What happens every so often: in epochs or in steps, with one best, and noticed in time."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_CONTEXT, Compose
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import DictConfig, open_dict
from rich.console import Console
from torch import Tensor

from newllm.config.build import ConfigFault
from newllm.data.batch import Batch, device_of, on_device_of
from newllm.models.language_model import LanguageModel, score_logits
from newllm.models.torch_rnn import GRU
from newllm.training.clipping import GradientClip
from newllm.training.clock import Every
from newllm.training.estimate import estimate
from newllm.training.experiment import Experiment, build_experiment
from newllm.training.history import COLLECT_EVERY, Diverged
from newllm.training.metrics import Scores, sum_rows
from newllm.training.module import LanguageModule
from newllm.training.progress import ProgressLine
from newllm.training.result import measured
from newllm.training.run import train

SMALL = (*TINY_CONTEXT, "logger=none", "callbacks=none", "countermeasure=none")
TINY30 = (*SMALL, "data=tiny30", "data.batch_size=5", "optimizer.lr=0.05")  # 5 steps an epoch

pytestmark = pytest.mark.filterwarnings("ignore:.*logging interval.*")


def fit(config: DictConfig, folder: Path, *callbacks: Callback) -> Experiment:
    torch.manual_seed(0)
    experiment = build_experiment(config, folder)
    experiment.trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    experiment.trainer.fit(experiment.module, datamodule=experiment.data)
    return experiment


def endless(compose_config: Compose, *chosen: str) -> DictConfig:
    config = compose_config(*SMALL, "recipe=modern", *chosen)
    with open_dict(config):
        config.data = {"_target_": "copy_task.Copy", "max_length": 12}
        config.trusted_packages = ["copy_task"]
    return config


@pytest.mark.parametrize("interval", ["0.5", "1", "3"])
def test_all_agree_on_the_best(compose_config: Compose, tmp_path: Path, interval: str) -> None:
    settings = ("patience=2", "min_delta=0.0")
    experiment = fit(
        compose_config(
            *TINY30,
            "countermeasure=early_stopping",
            *(f"countermeasures.early_stopping.{setting}" for setting in settings),
            f"+trainer.val_check_interval={interval}",
            "trainer.max_epochs=8",
        ),
        tmp_path,
    )
    (stopping,) = experiment.callbacks(EarlyStopping)
    history, figures = experiment.history, measured(experiment)
    rows = [row for row in history.epochs if "val/loss" in row]
    lowest = min(rows, key=lambda row: row["val/loss"])
    assert stopping.stopped_epoch
    assert float(stopping.best_score) == pytest.approx(lowest["val/loss"], rel=1e-6)
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    for best in (history.best, saved):
        assert best["val_loss"] == figures["best_val_loss"] == lowest["val/loss"]
        assert best["epoch"] == figures["best_epoch"] == lowest["epoch"]
        assert best["step"] == figures["best_step"] == lowest["step"]
    # An epoch that ended early has one row, and says how much of it there was.
    last = history.epochs[-1]
    assert {"train/loss", "val/loss"} <= last.keys()
    assert last["epoch"] == pytest.approx(last["step"] / 5, abs=1e-4)
    steps = [row["step"] for row in history.epochs]
    assert steps == sorted(set(steps))


class Look(Callback):
    """Calls a function before each step."""

    def __init__(self, look: Any) -> None:
        self.look = look

    def on_train_batch_start(self, trainer: Trainer, module: Any, *_: object) -> None:
        self.look(trainer, module)


def test_step_losses_are_on_disk_while_it_runs(compose_config: Compose, tmp_path: Path) -> None:
    table, seen, inodes = tmp_path / "steps.csv", {}, set()

    def look(trainer: Trainer, _: object) -> None:
        if table.exists():
            seen[trainer.global_step] = len(table.read_text().splitlines()) - 1
            inodes.add(table.stat().st_ino)

    chosen = ("trainer.max_steps=170", "+trainer.val_check_interval=170")
    experiment = fit(endless(compose_config, *chosen), tmp_path, Look(look))
    assert all(step - rows < COLLECT_EVERY for step, rows in seen.items())
    assert min(seen) <= COLLECT_EVERY
    assert len(inodes) == 1  # appended to, never written anew
    with table.open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert rows == experiment.history.steps
    assert [row["step"] for row in rows] == list(range(1, 171))


def test_checkpoints_come_by_steps(compose_config: Compose, tmp_path: Path) -> None:
    seen: dict[int, int] = {}

    def look(trainer: Trainer, _: object) -> None:
        path = tmp_path / "checkpoints" / "last.ckpt"
        if path.exists():
            seen[trainer.global_step] = torch.load(path, weights_only=True)["global_step"]

    fit(compose_config(*TINY30, "checkpoint_steps=3", "trainer.max_epochs=2"), tmp_path, Look(look))
    assert seen == {step: step // 3 * 3 for step in range(3, 10)}


def test_a_divergence_is_noticed_within_an_epoch(compose_config: Compose, tmp_path: Path) -> None:
    last = 0

    def spoil(trainer: Trainer, module: Any) -> None:
        nonlocal last
        last = trainer.global_step
        if last == 10:
            module.model.output.weight.data.fill_(torch.nan)

    chosen = ("trainer.max_steps=1000", "+trainer.val_check_interval=1000")
    with pytest.raises(Diverged, match=r"train/loss is nan .* step"):
        fit(endless(compose_config, *chosen), tmp_path, Look(spoil))
    assert last <= 10 + COLLECT_EVERY
    assert len((tmp_path / "steps.csv").read_text().splitlines()) > 10


def test_a_long_epoch_tells_how_far_it_is(compose_config: Compose, tmp_path: Path) -> None:
    progress, shown = ProgressLine(), io.StringIO()
    progress._console = Console(file=shown)
    chosen = ("trainer.max_steps=300", "+trainer.val_check_interval=300")
    fit(endless(compose_config, *chosen), tmp_path, progress)
    lines = shown.getvalue().splitlines()
    assert [line.split()[3] for line in lines[:-1]] == [f"{n}/300" for n in range(30, 300, 30)]
    assert "val" in lines[-1]
    assert ["train" in line for line in lines] == [False] + [True] * 9  # once a loss is known


def test_validation_as_often_as_takes_a_tenth(compose_config: Compose, tmp_path: Path) -> None:
    chosen = ("+trainer.val_check_interval=auto", "trainer.max_epochs=4")
    # 20 sentences are a tenth of 67 that go forward and back; some of each batch is padding.
    many = ("data.batch_size=1", "data.validation_sentences=20")
    often = build_experiment(compose_config(*SMALL, *chosen, *many), tmp_path)
    assert 60 <= often.trainer.val_check_interval <= 200
    assert often.trainer.check_val_every_n_epoch == 1
    few = ("data.train_sentences=60",)
    seldom = build_experiment(compose_config(*SMALL, *chosen, *few), tmp_path)
    assert seldom.trainer.val_check_interval == 1.0
    assert seldom.trainer.check_val_every_n_epoch == 4  # once at least


def test_what_auto_would_replace_is_a_fault(compose_config: Compose, tmp_path: Path) -> None:
    chosen = ("+trainer.val_check_interval=auto", "+trainer.check_val_every_n_epoch=3")
    with pytest.raises(ConfigFault, match=r"check_val_every_n_epoch=3: is set by .*=auto"):
        build_experiment(compose_config(*TINY30, *chosen), tmp_path)


class At:
    """A trainer at an epoch and a step."""

    max_epochs = 20

    def __init__(self, epoch: int, step: int) -> None:
        self.current_epoch, self.global_step = epoch - 1, step


def test_what_is_due_is_counted_in_epochs_or_in_steps() -> None:
    by_epochs, by_steps = Every(5), Every(5, num_steps=100)
    validations = [At(epoch, 30 * epoch) for epoch in range(1, 21)]
    due = [at.current_epoch + 1 for at in validations if by_epochs.is_due(at)]  # type: ignore[arg-type]
    assert due == [1, 5, 10, 15, 20]
    due = [at.global_step for at in validations if by_steps.is_due(at)]  # type: ignore[arg-type]
    assert due == [30, 120, 210, 300, 420, 510, 600]


def test_slices_have_metrics_of_their_own() -> None:
    scores = Scores(["loss", "accuracy_sequence"], ["short", "long"])
    targets_BT = torch.tensor([[5, -100, -100], [5, 6, 7], [5, 6, 7]])
    loss_BT = torch.tensor([[1.0, 0, 0], [2, 2, 2], [4, 4, 4]])
    correct_BT = torch.tensor([[True, False, False], [True, True, True], [True, False, True]])
    row_B = torch.arange(3)
    batch = Batch(targets_BT.clamp(min=0), targets_BT, row_B, torch.tensor([0, 1, 1]))
    scores.add(sum_rows(loss_BT, correct_BT, batch))
    assert scores.metrics() == {
        "loss": 19 / 7, "accuracy_sequence": 2 / 3, "loss/short": 1.0, "loss/long": 3.0,
        "accuracy_sequence/short": 1.0, "accuracy_sequence/long": 0.5,
    }  # fmt: skip
    with pytest.raises(ValueError, match="metrics: f1 does not exist; choose among loss"):
        Scores(["f1"])


def test_a_batch_is_scored_where_the_model_is() -> None:
    """On the device `meta`, which computes nothing."""
    model = LanguageModel(20, 4, [GRU], hidden_dim=4, num_layers=1).to("meta")
    module = LanguageModule(model, torch.optim.Adam, None, GradientClip([]), 1)
    tokens_BT, row_B = torch.full((2, 5), 4), torch.arange(2)
    reset_BT = torch.zeros(2, 5, dtype=torch.bool)
    (batch,) = on_device_of(model, [Batch(tokens_BT, tokens_BT, row_B, row_B, reset_BT, row_B)])
    assert {field.device for field in batch} == {device_of(model)} == {torch.device("meta")}
    step = module.training_step(batch, 0)
    assert step["loss"].device.type == "meta"
    scores = Scores(["loss", "loss_batch_mean"], ["even", "odd"])
    for _ in range(2):
        scores.add(step["rows"])
    assert scores.state_dict()["sums"].device.type == "meta"


def test_whatever_evaluates_moves_its_batches(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model refuses what was not brought to it."""
    moved: set[int] = set()
    scored: list[bool] = []
    kept = []
    to = Batch.to

    def move(batch: Batch, device: torch.device | str) -> Batch:
        batch = to(batch, device)
        batch = batch._replace(tokens_BT=batch.tokens_BT.clone())
        kept.append(batch)  # so that no other tensor gets its number
        moved.add(id(batch.tokens_BT))
        return batch

    def score(
        model: Any, tokens: Tensor, targets: Tensor, *state: Any, padding_matters: bool = True
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        scored.append(id(tokens) in moved)
        logits_BTV, after = model(tokens)
        return *score_logits(logits_BTV, targets), after

    monkeypatch.setattr(Batch, "to", move)
    monkeypatch.setattr(LanguageModel, "score", score)
    small = (*TINY_CONTEXT, "data=tiny30", "logger=none", "trainer.max_epochs=1")
    train(compose_config(*small), tmp_path / "run")
    estimate(build_experiment(compose_config(*small), tmp_path / "other"))
    assert len(scored) > 10
    assert all(scored)
