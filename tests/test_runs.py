"""The run directory: ownership, and loading what may be broken or hostile."""

import errno
import json
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from preloaded import CONTEXT
from small_models import context_model

from newllm.config.build import ConfigFault
from newllm.data.tokenizer import Tokenizer
from newllm.runs.directory import RunConflict, RunDirectory, load_run, read_result
from newllm.runs.identity import config_hash
from newllm.training.experiment import Experiment, build_experiment

MODEL = """model:
  _target_: newllm.models.language_model.LanguageModel
  layers:
    - _target_: newllm.models.recurrent.Recurrent
      _partial_: true
      cell: {_target_: newllm.models.cell.ContextCell, _partial_: true}
  vocabulary_size: 6
  embedding_dim: 4
  context_dim: 4
  hidden_dim: 4
  num_layers: 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small run directory that can be loaded."""
    tokenizer = Tokenizer.train(["a b"])
    model = context_model(6, 4, context_dim=4, hidden_dim=4, num_layers=1)
    (tmp_path / "checkpoints").mkdir()
    torch.save({"model": model.state_dict()}, tmp_path / "checkpoints" / "best.ckpt")
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    (tmp_path / "config.yaml").write_text(MODEL)
    (tmp_path / "result.json").write_text(json.dumps({"status": "done"}))
    return tmp_path


def test_a_run_loads(folder: Path) -> None:
    run = load_run(folder)
    assert run.tokenizer.size == run.model.vocabulary_size == 6
    assert run.result == {"status": "done"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", None, "result.json is missing"),
        ("result.json", "{", "result.json is broken"),
        ("result.json", "[]", "has no status"),
        ("checkpoints/best.ckpt", None, "checkpoints/best.ckpt is missing"),
        (
            "checkpoints/best.ckpt",
            "garbage",
            "checkpoints/best.ckpt cannot be loaded; it is damaged",
        ),
        ("tokenizer.json", "garbage", "cannot be loaded"),
        ("config.yaml", "a: [", "cannot be read"),
        ("config.yaml", "a: 1", "has no model"),
        ("config.yaml", MODEL.replace("hidden_dim: 4", "hidden_dim: 5"), "cannot be loaded"),
        ("config.yaml", MODEL.replace("hidden_dim: 4", "hidden_dim: x"), "hidden_dim=x"),
        ("config.yaml", MODEL.replace("hidden_dim: 4", "hidden_dim: null"), "cannot be loaded"),
        (
            "config.yaml",
            "model: {_target_: torch.nn.Identity}",
            "does not describe a language model",
        ),
    ],
)
def test_a_broken_run_is_one_line(
    folder: Path, name: str, content: str | None, message: str
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message) as fault:
        load_run(folder)
    assert "\n" not in str(fault.value)


def own(folder: Path, told: Connection) -> None:
    run = RunDirectory(folder)
    told.send(str(run.path))
    time.sleep(60)


def test_a_folder_belongs_to_one_process(tmp_path: Path) -> None:
    reader, writer = CONTEXT.Pipe(duplex=False)
    owner = CONTEXT.Process(target=own, args=(tmp_path, writer))
    owner.start()
    assert reader.recv() == str(tmp_path)
    with pytest.raises(RunConflict, match="another run is writing here"):
        RunDirectory(tmp_path)
    owner.kill()
    owner.join()
    # The system frees the lock of a process that was killed.
    run = RunDirectory(tmp_path)
    run.record(status="running")
    run.release()
    with pytest.raises(RunConflict, match="already contains a run"):
        RunDirectory(tmp_path)


def test_a_result_gathers_its_fields(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.record(status="running", seed=1)
    assert run.record(status="done") == {"status": "done", "seed": 1}
    assert json.loads((tmp_path / "result.json").read_text()) == {"status": "done", "seed": 1}
    run.release()


def test_the_hash_covers_what_decides_the_weights(compose_config: Compose, tmp_path: Path) -> None:
    def of(*overrides: str) -> str:
        return config_hash(compose_config(*overrides))

    assert of() == of("callbacks=none", "logger=none", "threads=1", "data.directory=elsewhere")
    assert of() == of("recurrence.compile=false", "+trainer.profiler=simple")
    assert of() != of("recurrence=reference")
    assert of() != of("seed=2")
    assert of() != of("~callbacks.early_stopping")  # this one acts
    assert of() == of("callbacks.samples.every_n_epochs=1", "checkpoint_steps=7")
    ours = "+callbacks.mine={_target_:newllm.training.history.History,folder:mine}"
    assert of() != of(ours)  # of the package, and more than a watcher
    assert of("countermeasure=none") != of("countermeasure=early_stopping")
    texts = [tmp_path / name for name in ("a.txt", "b.txt")]
    for text in texts:
        text.write_text("one two\n")
    first, second = (of("data=text", f"data.path={text}") for text in texts)
    assert first == second
    texts[1].write_text("one two three\n")
    assert of("data=text", f"data.path={texts[1]}") != first


def test_the_vocabulary_is_not_chosen_where_the_data_decides_it(
    compose_config: Compose, tmp_path: Path
) -> None:
    """It is left out of the hash there, so runs that differ in it would be taken for the same."""

    def build(*more: str) -> Experiment:
        chosen = "recipe=modern", "data=tiny30", "countermeasure=none", "logger=none"
        return build_experiment(compose_config(*chosen, *more), tmp_path)

    tokens = build().source.vocabulary_size
    assert build(f"model.vocabulary_size={tokens}").model.vocabulary_size == tokens
    with pytest.raises(ConfigFault) as fault:
        build("model.vocabulary_size=600")
    assert str(fault.value) == (
        f"model.vocabulary_size=600: follows from the data, where it is {tokens}; set "
        "recipe.output_classes=600"
    )
    assert build("recipe.output_classes=600").model.vocabulary_size == 600


def test_a_full_disk_leaves_a_result_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.record(status="running", error=None, name="some", extra=list(range(50)))

    open_file = Path.open

    def open_on_full_disk(path: Path, mode: str = "r", **arguments: Any) -> Any:
        if "x" not in mode:
            return open_file(path, mode, **arguments)
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    with pytest.raises(OSError, match="No space left"):
        run.record(status="done", val_loss_by_position=[1.0] * 100)
    run.release()
    result = read_result(run.path)
    assert result["status"] == "failed"
    assert "No space left" in result["error"]
    assert result["name"] == "some"
    assert not list(run.path.glob("*.partial"))
    assert not list(run.path.glob(".*.partial"))
