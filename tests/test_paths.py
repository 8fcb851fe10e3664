"""Paths in a configuration start where the command was given, wherever the run moves to."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY_CONTEXT, Compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from newllm.runs.identity import config_hash
from newllm.training.experiment import build_experiment
from newllm.training.run import attempt

Given = Callable[..., DictConfig]


@pytest.fixture
def given(compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    """Compose a configuration as if in `tmp_path`, and move away, as hydra.job.chdir=true does."""

    def compose(*overrides: str) -> DictConfig:
        monkeypatch.chdir(tmp_path)
        every = (*overrides, *TINY_CONTEXT, "countermeasure=none", "logger=none", "callbacks=none")
        loader = GlobalHydra.instance().config_loader()
        whole = loader.load_configuration("config", list(every), run_mode=RunMode.RUN)
        with open_dict(whole.hydra.runtime):
            whole.hydra.runtime.cwd = str(tmp_path)
        HydraConfig.instance().set_config(whole)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        return compose_config(*every)

    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    return compose


def test_a_relative_text_is_found_and_recorded_whole(given: Given, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one two\nthree four\nfive six\n" * 5)
    config = given("data=text", "data.path=text.txt", "data.directory=mine", "experiment=modern")
    experiment = build_experiment(config, tmp_path / "run")
    assert experiment.config.data.path == str(tmp_path / "text.txt")
    assert experiment.config.data.directory == str(tmp_path / "mine")
    assert config_hash(experiment.config) == config_hash(config)
    before = config_hash(config)
    (tmp_path / "text.txt").write_text("one two\nthree four\nfive seven\n" * 5)
    assert config_hash(config) != before


def test_files_of_a_corpus_are_written_there(given: Given, tmp_path: Path) -> None:
    experiment = build_experiment(given("data=tiny30"), tmp_path / "run")
    assert not (tmp_path / "data").exists()
    experiment.source.write()
    assert (tmp_path / "data" / "tiny30.train.txt").is_file()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_directory_that_cannot_be_written_is_a_line(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").touch()
    _, reason = attempt(given("data=tiny30"), tmp_path / "run", [], goes_on=False)
    assert reason == f"data.directory={tmp_path}/data: cannot be written: File exists"
    assert capsys.readouterr().err == f"{reason}\n"
    assert not (tmp_path / "run").exists()
