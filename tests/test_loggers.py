"""Loggers of any kind, several at once, and what each of them is told."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_CONTEXT, Compose, faults_of
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from omegaconf import open_dict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG

from newllm.reporting import figures
from newllm.runs.directory import read_result
from newllm.training import loggers
from newllm.training.experiment import build_experiment
from newllm.training.loggers import build_loggers
from newllm.training.run import quiet_lightning, train


class Notes(Logger):
    """A logger of a user's own, with no more than Lightning asks for."""

    name, version = "notes", 1

    def __init__(self) -> None:
        super().__init__()
        self.hyperparameters: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}

    def log_hyperparams(self, params: Any) -> None:  # type: ignore[override]
        self.hyperparameters |= params

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        self.metrics |= metrics


def test_one_or_several_loggers_can_be_chosen(compose_config: Compose, tmp_path: Path) -> None:
    for choice, kinds in (
        ("csv", [CSVLogger]),
        ("none", []),
        ("tensorboard", [TensorBoardLogger]),
        ("[tensorboard,csv]", [TensorBoardLogger, CSVLogger]),
    ):
        found = build_loggers(compose_config(f"logger={choice}"), tmp_path / "run")
        assert [type(logger) for logger in found] == kinds
        assert all(Path(str(logger.save_dir)) == tmp_path / "run" for logger in found)
    assert not (tmp_path / "run").exists()  # before the run starts


@pytest.mark.parametrize("choice", ["logger=[csv,nope]", "logger=[none,csv]", "logger=[csv,csv]"])
def test_an_impossible_list_of_loggers_is_a_line(choice: str) -> None:
    assert len(faults_of([choice])) == 1


def test_a_logger_that_takes_no_folder_is_not_given_one(
    compose_config: Compose, tmp_path: Path
) -> None:
    config = compose_config("logger=none")
    with open_dict(config):
        config.logger.notes = {"_target_": f"{__name__}.Notes"}
        config.trusted_packages = [__name__]
    (logger,) = build_loggers(config, tmp_path)
    assert type(logger).__name__ == "Notes"


def test_a_missing_package_is_named_before_the_start(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"logger.wandb: .* pip install wandb") as error:
        build_loggers(compose_config("logger=[wandb,mlflow]", "plan=true"), tmp_path)
    assert str(error.value).splitlines()[1].endswith("pip install mlflow")


def test_what_wandb_and_mlflow_are_built_with(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    built: list[dict[str, Any]] = []
    monkeypatch.setattr(
        loggers, "instantiate", lambda node, _, **extra: built.append({**node, **extra})
    )
    folder = tmp_path / "variant" / "seed=1"
    build_loggers(compose_config("logger=[wandb,mlflow]"), folder)
    wandb, mlflow = built
    assert (wandb["offline"], wandb["name"], wandb["save_dir"]) == (
        True, "variant/seed=1", str(folder),
    )  # fmt: skip
    assert (mlflow["run_name"], mlflow["save_dir"]) == ("variant/seed=1", str(folder / "mlruns"))
    assert mlflow["tracking_uri"] is None
    config = compose_config("logger=mlflow", "plan=true")
    assert build_loggers(config, folder) == []  # it would write into the folder at once


def test_any_logger_is_told_what_decides_a_run_and_how_it_ended() -> None:
    notes = Notes()
    loggers.log_start([notes], {"seed": 1}, {"bigram": 2.0})
    loggers.log_end([notes], {"val_loss": 1.5, "test_loss": None, "epoch": 3}, 10)
    assert notes.hyperparameters == {"seed": 1}
    assert notes.metrics == {"references/bigram": 2.0, "best/val_loss": 1.5, "best/epoch": 3.0}


def test_a_wandb_run_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    class Wandb(WandbLogger):
        def __init__(self) -> None:
            """Without the package."""

        experiment = type("Run", (), {"finish": lambda self: ended.append("run")})()  # type: ignore[assignment]

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            ended.append("metrics")

        def finalize(self, status: str) -> None:
            ended.append(status)

    loggers.log_end([Wandb()], {"val_loss": 1.0}, 1)
    assert ended == ["metrics", "success", "run"]


@pytest.mark.parametrize("model", ["gated", "context", "transformer", "lstm", "mingru"])
def test_hyperparameters_are_all_that_decides_and_name_each_thing_once(
    model: str, compose_config: Compose, tmp_path: Path
) -> None:
    choices = (f"model={model}", "data=tiny30", "recipe=modern", "countermeasure=early_stopping")
    found = build_experiment(compose_config(*choices, "logger=none"), tmp_path).hyperparameters
    assert {"name", "seed", "countermeasure", "model/class", "optimizer/lr"} <= set(found)
    assert {"trainer/max_epochs", "countermeasures/early_stopping/patience"} <= set(found)
    if model in ("gated", "context"):
        assert found["model/normalization/class"] == "LayerNorm"
    # Some loggers keep them as files: no name may be the folder of another.
    assert not [a for a in found for b in found if b.startswith(f"{a}/")]
    assert "data/order_seed" not in found  # it is the seed


def test_a_run_on_strange_text_ends_with_all_its_pictures_and_loggers(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # a fault in drawing is raised
    quiet_lightning()
    text = tmp_path / "text.txt"
    text.write_text("the ring $\\R$ is big\n東京 $ <b> 🙂 ^2_\n" * 20, "utf-8")
    run = tmp_path / "run"
    choices = ("data=text", f"data.path={text}", "logger=[tensorboard,csv]", *TINY_CONTEXT)
    train(compose_config(*choices, "trainer.max_epochs=1"), run)
    assert read_result(run)["status"] == "done"
    assert {"curves.png", "positions.png"} <= {file.name for file in run.iterdir()}
    assert "best/val_loss" in (run / "csv" / "version_0" / "metrics.csv").read_text()
    events = EventAccumulator(str(run)).Reload()
    images = {"view/context_over_time", "view/curves", "view/positions"}
    assert set(events.Tags()["images"]) == images
    # What sorts before them is what one looks for first.
    assert all(tag < min(images) for tag in events.Tags()["scalars"])
    # Columns of one run would be taken for those of all.
    told = events.PluginTagToContent("hparams")
    assert SESSION_START_INFO_TAG in told
    assert EXPERIMENT_TAG not in told


def test_no_picture_ends_a_run(
    compose_config: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    quiet_lightning()
    names = ("curves", "positions", "context_over_time")
    for name in names:
        monkeypatch.setattr(figures, name, fail)
    choices = ("data=tiny30", *TINY_CONTEXT, "trainer.max_epochs=1")
    train(compose_config(*choices), tmp_path / "run")
    assert read_result(tmp_path / "run")["status"] == "done"
    lines = [line for line in capsys.readouterr().err.splitlines() if "not drawn" in line]
    assert len(lines) == len(names)
