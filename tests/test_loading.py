"""Runs that load: every kind of model, and a user's own parts if he trusts them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Compose
from hostile import copy_of, good_run, nothing_done, write_config
from omegaconf import OmegaConf

from newllm.config.build import instantiate
from newllm.config.composing import conf_directory
from newllm.config.trust import DATA_TOLD, Trust
from newllm.runs.directory import (
    RunConflict,
    RunDirectory,
    has_ended,
    load_run,
    read_result,
)
from newllm.runs.identity import config_hash
from newllm.runs.writing import write_text
from newllm.training.evaluation import evaluate, evaluation_folder

MODELS = {
    "context": TINY, "gated": TINY, "mingru": ("embedding_dim=8", "hidden_dim=8"),
    **dict.fromkeys(("multihead", "hierarchy", "skip", "stacked", "shallow"), TINY),
    **dict.fromkeys(("lstm", "gru", "elman"), ("embedding_dim=8", "hidden_dim=8")),
    **dict.fromkeys(("transformer", "transformer_leaky"),
                    ("embedding_dim=8", "num_heads=2", "feedforward_dim=8")),
}  # fmt: skip
OTHERS = {
    "context": ("positions=learned", "context_clip=5"),
    "hierarchy": ("rates=learned", "periods=[1,8]"),
    "transformer": ("positions=rotary",),
}
PARTS = {
    "RMSNorm": {"_target_": "torch.nn.RMSNorm", "_partial_": True},
    "BatchNorm1d": {"_target_": "torch.nn.BatchNorm1d", "_partial_": True},
    "Linear": {"_target_": "torch.nn.Linear", "_partial_": True, "out_features": 4},
}
OWN = '''
import torch
from torch import nn
from newllm.models.gating import Gating

class Mine(Gating):
    """Its constructor reads a tensor, as it could not without memory."""
    name = "mine"

    def __init__(self, hidden_dim, context_dim):
        super().__init__()
        self.scale = sum(torch.ones(3).tolist())
        self.delta = nn.Linear(hidden_dim, context_dim)

    def forward(self, hidden_BH, context_BC):
        return context_BC + self.scale * self.delta(hidden_BH), {}
'''


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = good_run(tmp_path_factory.mktemp("good") / "run")
    load_run(folder)
    return folder


def store(good: Path, folder: Path, config: Any) -> Path:
    """A run of another model, as training leaves it."""
    copy_of(good, folder)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    packages = config.get("trusted_packages") or ()
    model = instantiate(config.model, packages, vocabulary_size=config.model.vocabulary_size)
    torch.save({"model": model.state_dict()}, folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.mark.parametrize("recipe", ["original", "modern"])
@pytest.mark.parametrize(
    ("model", "sizes"),
    [*MODELS.items(), *((model, (*MODELS[model], *more)) for model, more in OTHERS.items())],
    ids=str,
)
def test_every_model_loads(
    good: Path, tmp_path: Path, compose_config: Compose, model: str, sizes: tuple[str, ...],
    recipe: str,
) -> None:  # fmt: skip
    choices = (f"model={model}", f"recipe={recipe}", "data=tiny30", "model.vocabulary_size=400")
    config = compose_config(*choices, *(f"model.{size}" for size in sizes))
    folder = store(good, tmp_path / "run", config)
    with nothing_done(tmp_path):
        run = load_run(folder)
    saved = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["model"]
    torch.testing.assert_close(dict(run.model.state_dict()), dict(saved))
    assert not run.model.training


def store_with(good: Path, folder: Path, part: str, node: dict[str, Any]) -> Path:
    config = json.loads((good / "config.yaml").read_text())
    config["model"][part] = node
    return store(good, folder, OmegaConf.create(config | {"trusted_packages": ["my_parts"]}))


@pytest.mark.parametrize("name", PARTS)
def test_layers_of_torch_load(good: Path, tmp_path: Path, name: str) -> None:
    load_run(store_with(good, tmp_path / "run", "normalization", PARTS[name]))


def test_parts_of_the_user_load_if_he_says_so(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    node = {"_target_": "my_parts.Mine", "_partial_": True}
    folder = store_with(good, tmp_path / "run", "gating", node)
    run = load_run(folder, ["my_parts"])
    assert run.model.description.startswith("mine")
    with pytest.raises(ValueError, match=r"my_parts\.Mine: does not come from.*--trust PACKAGE$"):
        load_run(folder)
    # What a package imports is not its own.
    config = json.loads((good / "config.yaml").read_text())
    for target in ("my_parts.torch.load", "my_parts.torch", "my_parts.Mine.load_state_dict"):
        config["model"]["gating"] = {"_target_": target, "_partial_": True}
        write_config(folder, config)
        with nothing_done(tmp_path), pytest.raises(ValueError, match=r"model\.gating"):
            load_run(folder, ["my_parts"])
    # Nor are sizes.
    config["model"] |= {"gating": node, "hidden_dim": 10**6}
    write_config(folder, config)
    with pytest.raises(ValueError, match="larger than checkpoints/best"):
        load_run(folder, ["my_parts"])


def test_all_data_but_the_hub_can_be_loaded_again() -> None:
    trust, refused = Trust.in_strangers_data(), []
    for file in (conf_directory() / "data").glob("*.yaml"):
        node = OmegaConf.load(file)
        try:
            if "_target_" in node:  # others take it from these
                trust.target(node._target_)
        except ValueError as error:
            refused.append((file.stem, str(error)))
    assert refused == [("hub", f"is not allowed ({DATA_TOLD})")]


@pytest.mark.parametrize("data", ["hidden_markov", "grammar", "delayed_copy"])
def test_sources_of_symbols_can_be_evaluated(
    good: Path, tmp_path: Path, compose_config: Compose, data: str
) -> None:
    config = compose_config(f"data={data}", "data.evaluation_rows=4", "model.embedding_dim=4")
    source = instantiate(config.data)
    source.setup()
    config.model.vocabulary_size = source.vocabulary_size
    folder = store(good, tmp_path / "run", config)
    result = json.loads((folder / "result.json").read_text())
    result |= {"data_sha256": source.digest, "has_tokenizer": False}
    (folder / "result.json").write_text(json.dumps(result))
    found = json.loads((evaluate(folder) / "evaluation.json").read_text())
    assert found["metrics"].keys() == source.evaluation.keys()


def test_nothing_is_written_through_links(good: Path, tmp_path: Path) -> None:
    folder = copy_of(good, tmp_path / "run")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "elsewhere").mkdir()
    (folder / "evaluation").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        evaluation_folder(folder)
    for name in ("x.json", ".x.json.partial"):
        (folder / name).symlink_to(tmp_path / "precious")
    write_text(folder / "x.json", "new")
    assert (folder / "x.json").read_text() == "new"
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_done_run_without_its_weights_is_not_skipped(
    good: Path, tmp_path: Path, compose_config: Compose
) -> None:
    config = compose_config("data=tiny30")
    folder = copy_of(good, tmp_path / "run")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"config_hash": config_hash(config)}))
    assert has_ended(folder, config)
    (folder / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(
        RunConflict, match=r"best\.ckpt is missing; .*overwrite=true to move the old"
    ):
        has_ended(folder, config)


def test_a_result_is_json_whatever_the_losses_are(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.record(status="failed", seconds=float("nan"), val_loss_by_position=[1.0, float("inf")])
    run.release()
    assert read_result(tmp_path)["val_loss_by_position"] == [1.0, None]
    assert read_result(tmp_path)["seconds"] is None
