"""Every option of every group builds and takes a step; so does every experiment."""

import re
from pathlib import Path

import pytest
import torch
from conftest import TINY, Compose
from library import small_library
from omegaconf import DictConfig, OmegaConf

from newllm.config.composing import conf_directory
from newllm.config.settling import settled
from newllm.runs.identity import config_hash, variant_hash
from newllm.training.experiment import build_experiment

GROUPS = sorted(path.name for path in conf_directory().iterdir() if path.is_dir())
OPTIONS = [
    (group, path.stem) for group in GROUPS for path in sorted((conf_directory() / group).iterdir())
]
TASKS = {  # whose training data are endless
    path.stem
    for path in (conf_directory() / "data").iterdir()
    if re.search("newllm.data.(tasks|sources.(hidden_markov|endless))", path.read_text())
}
CHOOSE_DATA = ("data", "countermeasure", "experiment", "sweep")


def small_config(
    compose_config: Compose, folder: Path, monkeypatch: pytest.MonkeyPatch, group: str, option: str
) -> DictConfig:
    """A small run with an option of a group, whose files are written to a folder."""
    monkeypatch.chdir(folder)
    Path("some.txt").write_text("\n".join(f"a line of words {i % 7}" for i in range(40)))
    overrides = [f"{group}={option}"]
    pair = '{"prompt": "ask", "response": "told"}'
    Path("some.jsonl").write_text("\n".join([pair] * 40))
    if group == "data" and option in ("text", "pairs"):
        overrides.append(f"data.path=some.{'txt' if option == 'text' else 'jsonl'}")
    if option == "hub":
        Path("folder").mkdir()
        Path("folder", "train.txt").write_text(Path("some.txt").read_text())
        overrides += ["data.name=folder", "data.unit=line"]
    if option.startswith("stdlib"):
        small_library(folder, monkeypatch)
    if group == "data" and option in TASKS:
        overrides += ["recipe=task", "countermeasure=none", "trainer=smoke"]
    if group not in CHOOSE_DATA:
        overrides.append("data=tiny30")  # the quickest
    if (group, option) == ("model", "delta"):
        overrides.append("recurrence.compile=false")  # this takes longer than all other models
    if option in ("wandb", "mlflow"):
        overrides.append("plan=true")  # these packages are nobody's who does not want them
        monkeypatch.setattr("newllm.training.loggers.PACKAGES", {})
    config = compose_config(*overrides)
    if group == "scale":
        config = settled(config, overrides)
        config.budget.update(parameters=20_000, step=4)
    tiny = OmegaConf.from_dotlist([*TINY])
    config.model.update({size: tiny[size] for size in tiny if size in config.model})
    return config


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_builds_and_takes_a_step(
    compose_config: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: str,
    option: str,
) -> None:
    config = small_config(compose_config, tmp_path, monkeypatch, group, option)
    assert config_hash(config) != variant_hash(config)  # both can be computed
    experiment = build_experiment(config, tmp_path)
    batch = next(iter(experiment.data.train_dataloader()))
    optimizer = experiment.module.make_optimizer(experiment.model)
    before = torch.cat([weight.detach().flatten() for weight in experiment.model.parameters()])
    loss = experiment.module.train().loss(batch)
    loss.backward()
    optimizer.step()
    after = torch.cat([weight.detach().flatten() for weight in experiment.model.parameters()])
    assert torch.isfinite(loss)
    assert not torch.equal(before, after)


def test_every_group_of_the_design_exists() -> None:
    assert set(GROUPS) >= {
        "model", "normalization", "gating", "recurrence", "countermeasure", "data", "recipe",
        "experiment", "trainer", "logger", "callbacks",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "description"),
    [
        ((), "gated layernorm C512 H512 L9"),
        (("gating=none",), "additive layernorm C512 H512 L9"),
        (("model=context", "normalization=none"), "additive C512 H512 L9"),
        (("model=transformer",), "transformer E256 heads4 L6"),
        (("model=lstm",), "lstm E128 H256 L3"),
    ],
)
def test_runs_are_named_for_what_was_resolved(
    compose_config: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    description: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = build_experiment(compose_config(*overrides, "logger=none"), tmp_path)
    assert experiment.name == experiment.model.description == description


def test_countermeasures_act_by_their_own_keys(compose_config: Compose) -> None:
    config = compose_config("countermeasure=[cosine_annealing,weight_decay,context_clipping]")
    assert list(config.countermeasures) == ["cosine_annealing", "weight_decay", "context_clipping"]
    assert config.optimizer.weight_decay == 0.01
    assert config.schedule.scheduler.T_max == 50
    assert config.model.context_clip == 10
    assert "early_stopping" not in config.callbacks


def test_a_countermeasure_replaces_the_schedule_of_the_recipe(compose_config: Compose) -> None:
    scheduler = compose_config(
        "recipe=modern", "countermeasure=cosine_annealing"
    ).schedule.scheduler
    assert scheduler._target_.endswith("CosineAnnealingLR")
    assert "max_lr" not in scheduler
