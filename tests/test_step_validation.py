"""Validation by step: what is scored, how often, and at what cost."""

from pathlib import Path

import pytest
from conftest import TINY_CONTEXT, Compose

from newllm.training.experiment import build_experiment
from newllm.training.step_validation import StepValidation

WATCHED = (*TINY_CONTEXT, "logger=none", "threads=1")


def rows_of(compose_config: Compose, folder: Path, *chosen: str) -> list[dict[str, float]]:
    config = compose_config(*WATCHED, *chosen)
    experiment = build_experiment(config, folder)
    experiment.trainer.fit(experiment.module, datamodule=experiment.data)
    (callback,) = experiment.callbacks(StepValidation)
    return callback.rows


@pytest.mark.parametrize("chosen", [(), ("+trainer.accumulate_grad_batches=2",)])
@pytest.mark.filterwarnings("ignore:.*logging interval.*")
def test_a_small_split_is_scored_once_after_every_step(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: tuple[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ("data=tiny30", "data.batch_size=6", "trainer.max_epochs=2")
    rows = rows_of(compose_config, tmp_path, *small, *chosen)
    num_steps = 4 if chosen else 8
    assert [row["step"] for row in rows] == list(range(num_steps + 1))


@pytest.mark.filterwarnings("ignore:.*logging interval.*")
def test_of_a_large_split_the_first_sentences_are_scored_seldom(
    compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    lines = (" ".join((words * 2)[i % 10 : i % 10 + 3 + i % 7]) for i in range(6000))
    Path("text.txt").write_text("\n".join(lines))
    large = ("data=text", "data.path=text.txt", "data.validation_fraction=0.5", "data.batch_size=8")
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=150", "callbacks.steps.most=100")
    rows = rows_of(compose_config, tmp_path, *large, *short)
    # 100 targets in each, or some more: as much as 0.6 training steps of 8 sentences forward.
    interval = rows[1]["step"]
    assert interval >= 5
    assert [row["step"] for row in rows] == list(range(0, 151, int(interval)))


@pytest.mark.parametrize(
    ("num_targets", "num_trained", "num_steps"),
    [(1000, 160, 1250), (2000, 160, 60), (2000, 160, 10**6), (2000, 8, 500), (2000, 160, 1)],
)
def test_it_takes_a_tenth_of_the_training_at_most(
    num_targets: int, num_trained: int, num_steps: int
) -> None:
    callback = StepValidation()
    interval = callback.interval(num_targets, num_trained, num_steps)
    times = min(num_steps, callback.num_steps) // interval
    # In targets that go forward once; one time at least.
    assert max(times - 1, 0) * num_targets <= 0.1 * 3 * num_trained * num_steps
    assert interval >= callback.every_n_steps
