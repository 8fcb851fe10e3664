"""Lightning's trainer: each of its arguments does something, or is refused with what to do."""

import inspect
from pathlib import Path

import pytest
from conftest import TINY_CONTEXT, Compose
from lightning.pytorch import Trainer
from omegaconf import OmegaConf, open_dict

from newllm.config.composing import conf_directory
from newllm.training.experiment import build_experiment
from newllm.training.trainer import DECIDED, build_trainer, planned_steps

# Lightning does as it is told, and so the run does.
LEFT_TO_LIGHTNING = {
    *("accumulate_grad_batches", "benchmark", "check_val_every_n_epoch", "detect_anomaly"),
    *("deterministic", "min_epochs", "min_steps", "profiler", "val_check_interval"),
}
RUN = (*TINY_CONTEXT, "data=tiny30", "logger=none", "callbacks=none", "trainer.max_epochs=2")


def test_every_argument_is_thought_of() -> None:
    arguments = set(inspect.signature(Trainer).parameters) - {"self"}
    default = OmegaConf.load(conf_directory() / "trainer" / "default.yaml")
    offered = {str(name) for name in default if name != "_target_"}
    assert arguments == offered | LEFT_TO_LIGHTNING | DECIDED.keys()
    assert not offered & DECIDED.keys()


@pytest.mark.parametrize("name", DECIDED)
def test_what_the_run_decides_on_is_refused(
    compose_config: Compose, tmp_path: Path, name: str
) -> None:
    config = compose_config(*RUN)
    with open_dict(config):
        config.trainer[name] = 1
    with pytest.raises(ValueError, match=rf"trainer\.{name}: ") as fault:
        build_trainer(config, tmp_path, [], [])
    assert str(fault.value) == f"trainer.{name}: {DECIDED[name]}"


@pytest.mark.filterwarnings("ignore:.*logging interval.*")
def test_a_profiler_leaves_its_table(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose_config(*RUN, "+trainer.profiler=simple")
    experiment = build_experiment(config, tmp_path)
    experiment.trainer.fit(experiment.module, datamodule=experiment.data)
    assert "run_training_batch" in (tmp_path / "fit-profile.txt").read_text()


@pytest.mark.parametrize(
    ("chosen", "fault"),
    [
        ("trainer.max_steps=1", "before its first validation after 2"),
        ("+trainer.check_val_every_n_epoch=3", "before its first validation after 6"),
        ("+trainer.val_check_interval=5", "an epoch has 2 batches"),
        ("+trainer.val_check_interval='00:00:00:10'", "is not reproducible"),
        ("trainer.limit_train_batches=0", "leaves no batch"),
        ("+trainer.val_check_interval=0", "val_check_interval=0: must be a number of batches"),
        ("+trainer.val_check_interval=1.5", "must be a number of batches"),
        ("+trainer.val_check_interval=true", "must be a number of batches"),
        ("trainer.limit_train_batches=0 +trainer.val_check_interval=auto", "leaves no batch"),
        ("+trainer.profiler=fast", "fast: no such option; options: simple, advanced, pytorch"),
        ("+trainer.profiler=[simple]", "no such option"),
        ("+trainer.profiler={a:1}", "no such option"),
        ("recipe.gradient_clip=[3]", r"gradient_clip=\[3\]: must be"),
        ("trainer.strategy=ddp", "must be auto, or ddp or fsdp for several devices"),
        ("trainer.max_epochs=0", "must be at least 1"),
        (
            "+callbacks.mine={_target_:lightning.pytorch.callbacks.GradientAccumulationScheduler,"
            "scheduling:{0:2}}",
            "use .trainer.accumulate_grad_batches=N",
        ),
    ],
)
def test_what_makes_no_run_is_refused(
    compose_config: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chosen: str,
    fault: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=fault):
        build_experiment(compose_config(*RUN, *chosen.split()), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("chosen", "num_steps"),
    [
        ((), 2 * 3),
        (("+trainer.accumulate_grad_batches=2",), 2 * 2),
        (("trainer.limit_train_batches=2",), 2 * 2),
        (("trainer.limit_train_batches=0.67",), 2 * 2),
        (("trainer.max_steps=5",), 5),
    ],
)
def test_steps_are_planned_as_they_are_taken(
    compose_config: Compose, tmp_path: Path, chosen: tuple[str, ...], num_steps: int
) -> None:
    trainer = build_trainer(compose_config(*RUN, *chosen), tmp_path, [], [])
    assert planned_steps(trainer, num_batches=3) == num_steps
