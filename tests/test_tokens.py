"""A run that ends after a number of tokens."""

from pathlib import Path

import pytest
from conftest import TINY_CONTEXT, Compose, faults_of
from copy_task import Copy
from hydra.utils import instantiate
from omegaconf import open_dict

from newllm.runs.identity import config_hash
from newllm.training.experiment import Experiment, build_experiment
from newllm.training.run import train
from newllm.training.tokens import steps_of_tokens

SMALL = (*TINY_CONTEXT, "logger=none", "callbacks=none", "countermeasure=none", "recipe=modern")
TINY30 = (*SMALL, "data=tiny30", "data.batch_size=5")  # 5 steps an epoch


def total_steps(experiment: Experiment) -> int:
    """Those that the schedule is made for."""
    _, (schedule,) = experiment.module.configure_optimizers()
    return int(schedule["scheduler"].total_steps)


@pytest.mark.filterwarnings("ignore:.*logging interval.*")
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_run_ends_after_its_tokens(
    compose_config: Compose, tmp_path: Path, accumulated: int
) -> None:
    chosen = (f"+trainer.accumulate_grad_batches={accumulated}", "max_tokens=4e2")
    experiment = build_experiment(compose_config(*TINY30, *chosen), tmp_path)
    trainer, num_steps = experiment.trainer, experiment.module.num_steps
    assert total_steps(experiment) == experiment.preflight.num_steps == num_steps
    trainer.fit(experiment.module, datamodule=experiment.data)
    assert trainer.global_step == num_steps
    last = experiment.history.epochs[-1]
    largest_step = 5 * 10 * accumulated
    assert abs(last["tokens"] - 400) < largest_step
    assert "val/loss" in last  # the last weights are validated


def test_fewer_tokens_than_an_epoch(compose_config: Compose, tmp_path: Path) -> None:
    result = train(compose_config(*TINY30, "max_tokens=70", "test=false"), tmp_path / "run")
    num_steps = result["preflight"]["num_steps"]
    assert result["best_step"] == num_steps < 5


def test_the_mean_of_encoded_batches_is_exact(compose_config: Compose, tmp_path: Path) -> None:
    source = build_experiment(compose_config(*TINY30), tmp_path).source
    encoded = source.encoded("train")
    assert encoded is not None
    assert steps_of_tokens(encoded.num_targets, source, 1) == 5
    assert steps_of_tokens(20 * encoded.num_targets, source, 2) == 50
    assert steps_of_tokens(1, source, 1) == 1


def test_endless_data(compose_config: Compose, tmp_path: Path) -> None:
    source = Copy(12, seed=1)
    per_batch = int(source.train.batch(0, 0).scored_BT.sum())  # of every batch
    assert steps_of_tokens(40 * per_batch, source, 1) == 40
    config = compose_config(*SMALL, f"max_tokens={40 * per_batch}")
    with open_dict(config):
        config.data = {"_target_": "copy_task.Copy", "max_length": 12, "seed": 1}
        config.trusted_packages = ["copy_task"]
    experiment = build_experiment(config, tmp_path)
    assert experiment.module.num_steps == experiment.trainer.max_steps == 40
    assert total_steps(experiment) == 40


def test_a_curriculum_is_counted_over_the_whole_run(compose_config: Compose) -> None:
    config = compose_config("data=parity", "recipe=task")

    def steps(curriculum: int) -> int:
        lengths = {"lengths": [2, 64], "max_rows": 4, "batch_tokens": 10_000}
        source = instantiate(config.data, seed=1, curriculum=curriculum, **lengths)
        return steps_of_tokens(50_000, source, 1)

    assert steps(10_000) > 1.5 * steps(0)  # whose rows are long from the start


@pytest.mark.parametrize(
    ("line", "faults"),
    [
        ("max_tokens=2e8", []),
        ("max_tokens=0", ["max_tokens=0: must be a number of at least 1, or null"]),
        ("max_tokens=many", ["max_tokens=many: must be a number of at least 1, or null"]),
        ("max_tokens=.nan", ["max_tokens=.nan: must be a number of at least 1, or null"]),
        *(
            (
                f"max_tokens=100 {choice}",
                [f"{choice}: max_tokens sets the length of the run; remove one of the two"],
            )
            for choice in (
                "trainer.max_steps=5",
                "trainer.max_epochs=2",
                "recipe.max_epochs=2",
                "trainer=smoke",
            )
        ),
    ],
)
def test_faults(line: str, faults: list[str]) -> None:
    assert faults_of(line.split()) == faults


def test_tokens_are_part_of_the_identity(compose_config: Compose) -> None:
    without = compose_config(*TINY30)
    some, more = (compose_config(*TINY30, f"max_tokens={number}") for number in (100, 200))
    assert len({config_hash(each) for each in (without, some, more)}) == 3
    with open_dict(some):
        some.trainer.max_epochs = 7  # has no effect
    assert config_hash(some) == config_hash(compose_config(*TINY30, "max_tokens=100"))
    del without.max_tokens  # of an earlier version
    assert config_hash(without) == config_hash(compose_config(*TINY30))
