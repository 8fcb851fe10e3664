"""What is measured beside the training of a run, and where."""

from pathlib import Path

import pytest
import torch
from conftest import TINY_CONTEXT, Compose

from newllm.models.language_model import LanguageModel
from newllm.training.experiment import build_experiment
from newllm.training.result import predicted

RUN = ("data=tiny30", "countermeasure=none", "logger=none", "trainer=smoke", *TINY_CONTEXT)


def test_a_context_of_one_element_has_no_spread(compose_config: Compose, tmp_path: Path) -> None:
    for size, expected in ((1, {"context/norm"}), (2, {"context/norm", "context/std"})):
        folder = tmp_path / str(size)
        folder.mkdir()
        config = compose_config(*RUN, "callbacks=default", f"model.context_dim={size}")
        experiment = build_experiment(config, folder)
        experiment.trainer.fit(experiment.module, datamodule=experiment.data)
        (row,) = experiment.history.epochs
        assert {name for name in row if name.startswith("context/")} == expected


def test_losses_by_position_are_computed_on_the_device_of_the_run(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = build_experiment(compose_config(*RUN, "callbacks=none"), tmp_path)
    gpu, moves = torch.device("cuda:0"), []

    def move(model: LanguageModel, device: torch.device) -> LanguageModel:
        moves.append(device)
        return model

    monkeypatch.setattr(type(experiment.trainer.strategy), "root_device", gpu)
    monkeypatch.setattr(LanguageModel, "to", move)
    monkeypatch.setattr(LanguageModel, "cpu", lambda model: move(model, torch.device("cpu")))
    assert predicted(experiment)["val_loss_by_position"]
    assert moves == [gpu, torch.device("cpu")]
