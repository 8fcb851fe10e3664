"""`run=FOLDER`: a single run goes on as its folder says, or says why not."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY_CONTEXT, Compose
from omegaconf import DictConfig

from newllm.config.build import ConfigFault
from newllm.config.command_line import resumed_run
from newllm.runs.directory import RunDirectory, read_config
from newllm.runs.identity import config_hash
from newllm.runs.resume import resume
from newllm.training.checkpoints import Checkpoints
from newllm.training.run import Interrupted, attempt, train

OVERRIDES = [
    *("experiment=modern", "data=tiny30", "data.batch_size=5", "recipe.max_epochs=3"),
    *("logger=none", "callbacks=none", "threads=1", *TINY_CONTEXT),
]
pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")


@pytest.fixture
def config(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: object
) -> DictConfig:
    monkeypatch.chdir(tmp_path)
    return compose_config(*OVERRIDES)


@pytest.fixture
def interrupted(config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was asked to stop before its eighth step."""
    folder = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        go_on = Checkpoints.on_train_batch_start

        def stop(self: Checkpoints, trainer: object, *arguments: object) -> None:
            self._is_asked_to_stop = trainer.global_step == 7  # type: ignore[attr-defined]
            go_on(self, trainer, *arguments)  # type: ignore[arg-type]

        patch.setattr(Checkpoints, "on_train_batch_start", stop)
        with pytest.raises(Interrupted, match=r"run=.*interrupted"):
            train(config, folder, OVERRIDES)
    return folder


def test_it_ends_as_if_it_had_not_been_interrupted(
    config: DictConfig, interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(config, tmp_path / "whole", OVERRIDES)
    assert resume(interrupted, [], attempt) == 0
    result = json.loads((interrupted / "result.json").read_text())
    same = ("steps", "best_val_loss", "best_epoch", "overrides", "config_hash", "experiment")
    assert {name: result[name] for name in same} == {name: whole[name] for name in same}
    first, second = (
        torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["model"]
        for folder in (tmp_path / "whole", interrupted)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert resume(interrupted, [], attempt) == 0
    assert f"{interrupted}: is done; best validation loss" in capsys.readouterr().out


def test_it_says_why_it_does_not_go_on(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reason() -> str:
        assert resume(interrupted, [], attempt) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    capsys.readouterr()
    owner = RunDirectory(interrupted, goes_on=True)
    owner.record(status="running")
    assert "is running" in reason()
    owner.record(status="diverged", error="val/loss is nan")
    owner.release()
    assert "diverged and would diverge again: val/loss is nan" in reason()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run=nowhere", "nowhere: is not a run directory; result.json is missing"),
        ("run=", "run=: must be the folder of a run"),
        ("run=there seed=2", "seed=2: run=FOLDER uses the configuration"),
        ("run=there trusted_packages=mine", "trusted_packages=mine: must be a list"),
    ],
)
def test_its_command_line_is_checked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "result.json").touch()
    with pytest.raises(ConfigFault, match=message):
        resumed_run(line.split())
    packages = ["run=there", "trusted_packages=[mine,yours]"]
    assert resumed_run(packages) == (Path("there"), ["mine", "yours"])
    assert resumed_run(["seed=2"]) is None


def test_a_damaged_checkpoint_is_told_and_can_be_removed(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = interrupted / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    before = (interrupted / "result.json").read_text()
    capsys.readouterr()
    assert resume(interrupted, [], attempt) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{last}: is damaged; remove it to start the run from the beginning"
    ]
    assert (interrupted / "result.json").read_text() == before
    last.unlink()
    assert resume(interrupted, [], attempt) == 0


def test_a_checkpoint_of_a_gpu_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.checkpoints.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        torch.save({"weight": torch.ones(2)}, run.checkpoints / "last.ckpt")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run.check_last_checkpoint()
    run.release()


def test_a_changed_run_does_not_go_on(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = interrupted / "config.yaml"
    written.write_text(written.read_text().replace("lr: 0.002", "lr: 0.003"))
    assert resume(interrupted, [], attempt) == 1
    assert "contains a run with another configuration" in capsys.readouterr().err


def test_a_run_names_no_packages_to_trust(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the command line does: the run may be somebody else's."""
    written = interrupted / "config.yaml"
    changed = written.read_text().replace("trusted_packages: []", "trusted_packages: [subprocess]")
    written.write_text(changed.replace("torch.nn.LayerNorm", "subprocess.Popen"))
    result = json.loads((interrupted / "result.json").read_text())
    result["config_hash"] = config_hash(read_config(interrupted))
    (interrupted / "result.json").write_text(json.dumps(result))
    capsys.readouterr()
    assert resume(interrupted, [], attempt) == 1
    assert "subprocess.Popen" in capsys.readouterr().err
