"""Tables and checkpoints of a run, trained in this process at a tiny size."""

import csv
from pathlib import Path

import pytest
import torch
from conftest import TINY_CONTEXT, Compose
from lightning.pytorch import Callback, Trainer

from newllm.experiment import Experiment, build_experiment
from newllm.models.language_model import score_logits
from newllm.module import SentenceScores
from newllm.result import measured
from newllm.runs import load_weights

TINY_RUN = (*TINY_CONTEXT, "data=tiny30", "logger=none", "callbacks=none", "trainer.max_epochs=8")


@pytest.fixture
def experiment(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Experiment:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    # A rate so high that the best epoch is not the last one.
    config = compose_config(*TINY_RUN, "optimizer.lr=0.1", "keep_last=true")
    return build_experiment(config, tmp_path)


def validation_loss(experiment: Experiment) -> float:
    scores = SentenceScores()
    with torch.no_grad():
        for batch in experiment.data.val_dataloader():
            logits_BTV, _ = experiment.model.eval()(batch.tokens_BT)
            scores.add(*score_logits(logits_BTV, batch.targets_BT), batch)
    return scores.metrics()["loss"]


@pytest.mark.filterwarnings("ignore:.*logging interval.*")
def test_the_best_checkpoint_holds_the_best_epoch(experiment: Experiment, tmp_path: Path) -> None:
    experiment.trainer.fit(experiment.module, datamodule=experiment.data)
    figures = measured(experiment)
    assert figures["best_epoch"] < 8, "the test needs a run that gets worse again"
    last_loss = validation_loss(experiment)
    load_weights(experiment.model, tmp_path / "checkpoints" / "best.ckpt")
    assert validation_loss(experiment) == pytest.approx(figures["best_val_loss"], rel=1e-6)
    assert last_loss > figures["best_val_loss"]
    with (tmp_path / "steps.csv").open(newline="") as table:
        steps = list(csv.DictReader(table))
    assert [int(row["step"]) for row in steps] == list(range(1, 8 * 2 + 1))
    assert all(float(row["grad/norm"]) > 0 for row in steps)


@pytest.mark.filterwarnings("ignore:.*logging interval.*")
def test_the_last_checkpoint_holds_all_that_goes_on(experiment: Experiment, tmp_path: Path) -> None:
    experiment.trainer.fit(experiment.module, datamodule=experiment.data)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 16
    assert last["optimizer_states"][0]["state"]
    assert len(last["callbacks"]["History"]["epochs"]) == 8


class SaveAt(Callback):
    """Save a checkpoint after one step, as the recorder does when its time has come."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:.*logging interval.*")
@pytest.mark.parametrize("step", [11, 14])
def test_resumed_equals_uninterrupted(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Go on from the start of an epoch (of 5 steps) or near its end: what follows is the same."""
    monkeypatch.chdir(tmp_path)
    config = compose_config(*TINY_RUN, "data.batch_size=5", "trainer.max_epochs=6")
    experiments = []
    for seed, checkpoint in ((3, None), (99, tmp_path / "saved.ckpt")):
        torch.manual_seed(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        experiment = build_experiment(config, folder)
        if checkpoint is None:
            callbacks: list[Callback] = getattr(experiment.trainer, "callbacks")  # noqa: B009
            callbacks.append(SaveAt(step, tmp_path / "saved.ckpt"))
        experiment.trainer.fit(
            experiment.module, datamodule=experiment.data, ckpt_path=checkpoint, weights_only=True
        )
        experiments.append(experiment)
    whole, resumed = experiments
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weights), name
    assert resumed.history.steps == whole.history.steps
    assert resumed.history.epochs == whole.history.epochs
