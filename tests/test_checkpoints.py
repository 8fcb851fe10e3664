"""Tables and checkpoints of a run, trained in this process at a tiny size."""

import csv
from pathlib import Path

import pytest
import torch
from conftest import TINY_CONTEXT, Compose

from newllm.models.language_model import score_logits
from newllm.runs.directory import load_weights
from newllm.training.experiment import Experiment, build_experiment
from newllm.training.metrics import Scores, sum_rows
from newllm.training.random_states import random_states, set_random_states
from newllm.training.result import measured

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
    scores = Scores(["loss"])
    with torch.no_grad():
        for batch in experiment.source.evaluation["validation"]:
            logits_BTV, _ = experiment.model.eval()(batch.tokens_BT)
            scores.add(sum_rows(*score_logits(logits_BTV, batch.targets_BT), batch))
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


AVERAGED = "+callbacks.average={_target_:lightning.pytorch.callbacks.EMAWeightAveraging}"


@pytest.mark.filterwarnings("ignore:.*logging interval.*")
@pytest.mark.parametrize(
    "chosen", ["+trainer.val_check_interval=1", AVERAGED, "+trainer.check_val_every_n_epoch=3"]
)
def test_what_is_called_best_is_what_is_saved(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ("countermeasure=none", "optimizer.lr=0.05", "data.batch_size=5")
    config = compose_config(*TINY_RUN, *more, chosen)
    experiment = build_experiment(config, tmp_path)
    experiment.trainer.fit(experiment.module, datamodule=experiment.data)
    figures = measured(experiment)
    load_weights(experiment.model, tmp_path / "checkpoints" / "best.ckpt")
    assert validation_loss(experiment) == pytest.approx(figures["best_val_loss"], rel=1e-6)
    losses = [row["val/loss"] for row in experiment.history.epochs if "val/loss" in row]
    assert min(losses) == figures["best_val_loss"]
    assert figures["epochs"] == 8


@pytest.mark.filterwarnings("ignore:.*logging interval.*")
def test_accumulated_batches_count_by_their_tokens(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches of 5 sentences are one of 10, whatever the lengths of their sentences."""
    monkeypatch.chdir(tmp_path)
    histories = []
    for chosen in (["data.batch_size=10"],
                   ["data.batch_size=5", "+trainer.accumulate_grad_batches=2"]):  # fmt: skip
        torch.manual_seed(0)
        overrides = (*TINY_RUN, "recipe.dropout=0", "optimizer.lr=0.01", "data.order_seed=4")
        experiment = build_experiment(compose_config(*overrides, *chosen), tmp_path)
        experiment.trainer.fit(experiment.module, datamodule=experiment.data)
        assert experiment.trainer.global_step == experiment.preflight.num_steps == 8 * 3
        histories.append(experiment.history)
    one, two = histories
    assert [row["tokens"] for row in one.steps] == [row["tokens"] for row in two.steps]
    for name in ("train/loss", "grad/norm"):
        expected = [row[name] for row in one.steps]
        assert [row[name] for row in two.steps] == pytest.approx(expected, rel=1e-3), name
    for name in ("train/loss", "val/loss", "train/accuracy"):
        expected = [row[name] for row in one.epochs]
        assert [row[name] for row in two.epochs] == pytest.approx(expected, rel=1e-3), name


@pytest.mark.filterwarnings("ignore:.*logging interval.*")
def test_the_last_checkpoint_holds_all_that_goes_on(experiment: Experiment, tmp_path: Path) -> None:
    experiment.trainer.fit(experiment.module, datamodule=experiment.data)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 16
    assert last["optimizer_states"][0]["state"]
    assert len(last["callbacks"]["History"]["epochs"]) == 8


def test_random_states_where_the_accelerator_of_torch_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on Linux without a GPU, where torch is usually built for CUDA."""
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    states = random_states()
    assert states["device"] is None
    drawn = torch.rand(3)
    set_random_states(states)
    assert torch.equal(torch.rand(3), drawn)
