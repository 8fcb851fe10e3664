"""Sources of a user's own: endless, scored in places, with several splits, carrying a state."""

import csv
import json
import shutil
from itertools import pairwise
from pathlib import Path

import copy_task
import pytest
import torch
from conftest import TINY_CONTEXT, Command, Compose
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig, open_dict

from newllm.config.build import ConfigFault
from newllm.data.module import DataModule, TrainingLoader
from newllm.data.source import Source
from newllm.data.tokenizer import PAD
from newllm.models.language_model import score_logits
from newllm.runs.directory import load_run
from newllm.runs.files import check_result
from newllm.training.experiment import Experiment, build_experiment
from newllm.training.metrics import Scores, sum_rows
from newllm.training.summary import print_result

RUN = ("recipe=modern", "countermeasure=none", *TINY_CONTEXT)
ENDLESS = ("trainer.max_steps=60", "+trainer.val_check_interval=20")

pytestmark = pytest.mark.filterwarnings("ignore:.*logging interval.*")


def test_a_task_from_outside_the_package_trains(command: Command, tmp_path: Path) -> None:
    shutil.copy(copy_task.__file__, tmp_path / "my_task.py")
    (tmp_path / "my_conf" / "data").mkdir(parents=True)
    description = "_target_: my_task.Copy\nmax_length: 12\nseed: ${seed}\n"
    (tmp_path / "my_conf" / "data" / "my_copy.yaml").write_text(description)
    chosen = (
        "--config-dir",
        "my_conf",
        "data=my_copy",
        "trusted_packages=[my_task]",
        *RUN,
        *ENDLESS,
    )
    done = command("newllm.train", *chosen, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["steps"], result["corpus"]) == ("done", 60, "copy")
    assert result["references"] == {"chance": 1.386}
    with (run / "metrics.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [int(row["step"]) for row in rows] == [20, 40, 60]
    shown = {"val/loss", "val/accuracy_sequence", "val/loss/odd", "twice_as_long/loss"}
    assert shown <= set(rows[0])
    assert "val/perplexity" not in rows[0]
    best = next(row for row in rows if int(row["step"]) == result["best_step"])
    assert min(float(row["val/loss"]) for row in rows) == result["best_val_loss"]
    assert float(best["val/loss"]) == result["best_val_loss"]
    long = result["evaluation"]["twice_as_long"]  # with the best weights
    assert long["loss"] == pytest.approx(float(best["twice_as_long/loss"]), rel=1e-5)
    assert "twice_as_long, at the best epoch" in done.stdout
    assert load_run(run).tokenizer is None
    for module in ("newllm.generate", "newllm.evaluate"):
        refused = command(module, "run")
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)


def test_a_sweep_over_data_of_ones_own_ends_in_a_report(command: Command, tmp_path: Path) -> None:
    """Such data need not have all the metrics that sentences have."""
    shutil.copy(copy_task.__file__, tmp_path / "my_task.py")
    (tmp_path / "my_conf" / "data").mkdir(parents=True)
    (tmp_path / "my_conf" / "data" / "my_copy.yaml").write_text(
        "_target_: my_task.Copy\nmax_length: 12\n"
    )
    (tmp_path / "my_conf" / "model").mkdir()
    (tmp_path / "my_conf" / "model" / "lone.yaml").write_text(
        "_target_: newllm.models.language_model.LanguageModel\n"
        "layers:\n"
        "  - _target_: newllm.models.torch_rnn.GRU\n"
        "    _partial_: true\n"
        "    hidden_dim: 8\n"
        "    num_layers: 1\n"
        "vocabulary_size: null\n"
        "embedding_dim: 8\n"
    )
    chosen = ("data=my_copy", "model=lone", "trusted_packages=[my_task]", "recipe=modern")
    short = ("countermeasure=none", "trainer.max_steps=4", "+trainer.val_check_interval=2")
    swept = command("newllm.train", "-m", "--config-dir", "my_conf", *chosen, *short, "seed=1,2")
    assert swept.returncode == 0, swept.stderr
    assert "(n=2)" in swept.stdout
    told = command("newllm.report", "outputs/runs")
    assert told.returncode == 0, told.stderr
    assert "broken" not in told.stdout + told.stderr
    assert "(n=2)" in told.stdout


def configured(compose_config: Compose, target: str, *chosen: str) -> DictConfig:
    config = compose_config(*RUN, "logger=none", "callbacks=none", *chosen)
    with open_dict(config):
        length = 12 if target == "Copy" else 5
        config.data = {"_target_": f"copy_task.{target}", "max_length": length}
        config.trusted_packages = ["copy_task"]
    return config


class SaveAt(Callback):
    """Saves a checkpoint before some steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(
        self, trainer: Trainer, module: object, batch: object, batch_idx: int
    ) -> None:
        is_whole = batch_idx % trainer.accumulate_grad_batches == 0
        if trainer.global_step in (7, 20, 33) and is_whole:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fit(config: DictConfig, folder: Path, checkpoint: Path | None = None) -> Experiment:
    torch.manual_seed(99 if checkpoint else 3)
    folder.mkdir()
    experiment = build_experiment(config, folder)
    if not checkpoint:
        experiment.trainer.callbacks.append(SaveAt(folder))  # type: ignore[attr-defined]
    experiment.trainer.fit(
        experiment.module, datamodule=experiment.data, ckpt_path=checkpoint, weights_only=True
    )
    return experiment


@pytest.mark.parametrize(
    ("target", "chosen"),
    [
        ("Copy", ("trainer.max_steps=45", "+trainer.val_check_interval=20")),
        ("Copy", ("trainer.max_steps=45", "+trainer.accumulate_grad_batches=2")),
        ("Stream", ("trainer.max_epochs=5",)),
    ],
)
def test_it_resumes_bit_for_bit(
    compose_config: Compose, tmp_path: Path, target: str, chosen: tuple[str, ...]
) -> None:
    config = configured(compose_config, target, *chosen)
    whole = fit(config, tmp_path / "whole")
    saved = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(saved) == 3
    for checkpoint in saved:
        resumed = fit(config, tmp_path / checkpoint.stem, checkpoint)
        assert resumed.history.steps == whole.history.steps
        assert resumed.history.epochs == whole.history.epochs
        for name, weights in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], weights), name


def test_an_endless_split_goes_on_from_epoch_to_epoch() -> None:
    split = copy_task.Copy().train
    loader = TrainingLoader(split, epoch_length=3)
    loader.set_epoch(2)
    found = [batch.tokens_BT.tolist() for batch in loader]
    assert found == [split.batch(0, number).tokens_BT.tolist() for number in (6, 7, 8)]


def test_validation_takes_a_tenth_where_nothing_was_chosen(
    compose_config: Compose, tmp_path: Path
) -> None:
    config = configured(compose_config, "Copy", "trainer.max_steps=1000")
    experiment = build_experiment(config, tmp_path)
    source = experiment.source
    positions = sum(
        batch.tokens_BT.numel() for split in source.evaluation.values() for batch in split
    )
    of_a_step = source.train.batch(0, 0).tokens_BT.numel()
    assert positions <= 0.1 * 3 * of_a_step * experiment.data.steps_per_epoch
    assert experiment.preflight.num_steps == 1000


def test_limited_epochs_of_endless_data_are_validated_like_any(
    compose_config: Compose, tmp_path: Path
) -> None:
    chosen = ("trainer.limit_train_batches=30", "trainer.max_epochs=4")
    auto = "+trainer.val_check_interval=auto"
    for more, interval in (((), 1.0), ((auto,), 30)):
        experiment = build_experiment(configured(compose_config, "Copy", *chosen, *more), tmp_path)
        assert experiment.preflight.num_steps == 120
        assert experiment.data.steps_per_epoch == 30
        assert experiment.trainer.val_check_interval == interval


@pytest.mark.parametrize(
    ("chosen", "fault"),
    [
        ((), "trainer.max_steps=-1: the training data of copy is endless; set it"),
        (("trainer.max_steps=5", "trainer.max_epochs=3"), "trainer.max_epochs=3: .*max_steps"),
        (("trainer.max_steps=5", "recipe.max_epochs=7"), "recipe.max_epochs=7: .*leave it at 40"),
        (("trainer.max_steps=5", "+trainer.val_check_interval=0.5"), "set a number of batches"),
        (
            (*ENDLESS, "+trainer.accumulate_grad_batches=3"),
            "val_check_interval=20: must be a multiple of trainer.accumulate_grad_batches=3",
        ),
        (("trainer.max_steps=5", "recipe=original"), "recipe.gradient_clip: .* is endless"),
        (("trainer.max_steps=5", "countermeasure=cosine_annealing"), "a schedule by steps"),
    ],
)
def test_epochs_where_there_are_none_are_a_fault(
    compose_config: Compose, tmp_path: Path, chosen: tuple[str, ...], fault: str
) -> None:
    with pytest.raises(ConfigFault, match=fault):
        build_experiment(configured(compose_config, "Copy", *chosen), tmp_path)


def test_a_stream_is_scored_as_its_documents_are(compose_config: Compose, tmp_path: Path) -> None:
    experiment = build_experiment(configured(compose_config, "Stream"), tmp_path)
    trainer, source = experiment.trainer, experiment.source
    (found,) = trainer.validate(experiment.module, datamodule=experiment.data, verbose=False)
    scores = Scores(["loss"])
    chunks = source.evaluation["validation"]
    assert isinstance(chunks, copy_task.Chunks)
    for tokens_S, starts_S in zip(chunks.tokens_BS, chunks.starts_BS, strict=True):
        ends = [*starts_S.nonzero()[:, 0].tolist(), len(tokens_S)]
        for start, end in pairwise(ends):
            if end - start > 1:
                ids = tokens_S[None, start:end]
                logits, targets = experiment.model.eval()(ids[:, :-1])[0], ids[:, 1:]
                batch = copy_task.Batch(ids[:, :-1], targets, torch.tensor([0]))
                scores.add(sum_rows(*score_logits(logits, targets), batch))
    assert found["val/loss"] == pytest.approx(scores.metrics()["loss"], rel=1e-5)


class Faulty(copy_task.Copy):
    """A source with faults in all its parts."""

    def setup(self) -> None:
        self.vocabulary_size = 6
        self.evaluation = {"other": copy_task.CopyBatches(3, 4, 1, None)}


class Reading(copy_task.Copy):
    """A source that scores a target where nothing is read."""

    def setup(self) -> None:
        self.train = copy_task.CopyBatches(3, 4, 1, None)
        batch = self.train.batch(0, 0)
        batch.tokens_BT[0, -1] = PAD
        self.train.batch = lambda epoch, number: batch  # type: ignore[method-assign]


class Named(copy_task.Copy):
    """A source whose splits, slices and references have names of their own."""

    def setup(self) -> None:
        self.evaluation = dict.fromkeys(self.splits, self.evaluation["validation"])

    splits = ("validation", "2x long", "a/b", "val")

    def reference_losses(self, split: str) -> dict[str, float]:
        return {"5-gram": 1.0}


class WellNamed(Named):
    """The same with names that can be told."""

    splits = ("validation", "2x-long")


class Misnamed(WellNamed):
    """Its references cannot be told."""

    def reference_losses(self, split: str) -> dict[str, float]:
        return {"[red]": 1.0, "none": float("nan")}


class Empty(Source):
    """A source that sets nothing."""


@pytest.mark.parametrize(
    ("target", "faults"),
    [
        ("Faulty", ["no evaluation split validation", "train: its tokens", "other is endless"]),
        ("Empty", ["does not set name, vocabulary_size, max_length, train, evaluation"]),
        ("Reading", ["train: it has a target at <PAD>"]),
        (
            "Named",
            [
                "its split '2x long' is not a valid name",
                "its split 'a/b' is not",
                "its evaluation split val would",
            ],
        ),
        ("Misnamed", ["its reference '[red]' is not a valid name", "none is nan, but must be"]),
        ("pytest", ["no such class or function"]),
    ],
)
def test_faults_of_a_source_are_told_before_the_start(
    compose_config: Compose, tmp_path: Path, target: str, faults: list[str]
) -> None:
    config = compose_config(*RUN, "logger=none", "callbacks=none", *ENDLESS)
    with open_dict(config):
        config.model.max_length = 12
        config.data = {"_target_": f"{__name__}.{target}"}
        config.trusted_packages = [__name__]
    with pytest.raises(ConfigFault) as error:
        build_experiment(config, tmp_path)
    lines = str(error.value).splitlines()
    assert all(any(fault in line for line in lines) for fault in faults), lines


def test_a_result_with_any_name_that_was_taken_can_be_read(
    compose_config: Compose, tmp_path: Path
) -> None:
    config = configured(compose_config, "Copy", *ENDLESS)
    with open_dict(config):
        config.data["_target_"] = f"{__name__}.WellNamed"
        config.trusted_packages = [__name__]
    references = dict(build_experiment(config, tmp_path).references.means)
    result = {"status": "done", "references": references, "evaluation": {"2x-long": {"loss": 1.0}}}
    assert check_result(result) == result


def test_learned_positions_that_would_end_are_a_fault(
    compose_config: Compose, tmp_path: Path
) -> None:
    learned = configured(compose_config, "Stream", "model.positions=learned")
    with pytest.raises(ConfigFault, match=r"model\.positions=learned: the rows of stream continue"):
        build_experiment(learned, tmp_path)
    build_experiment(
        configured(compose_config, "Copy", "model.positions=learned", *ENDLESS), tmp_path
    )


def test_advice_for_data_of_ones_own(
    compose_config: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where counting pairs of words is better, which such a source may know as well."""
    config = configured(compose_config, "Copy", *ENDLESS)
    experiment = build_experiment(config, tmp_path)
    experiment.config.recipe.name = "mine"
    experiment.references.means["bigram"] = 0.5  # type: ignore[index]
    result = dict.fromkeys(
        ("best_val_loss_batch_mean", "evaluation", "test_loss", "val_kl", "sees_the_future")
    )
    print_result(
        result | {"best_val_loss": 1.0, "best_epoch": 1, "seconds": 1.0}, experiment, tmp_path
    )
    assert "worse than bigram counts; try recipe=modern" in capsys.readouterr().out


def test_splits_are_evaluated_when_they_should() -> None:
    source = copy_task.Copy()
    source.evaluation = {"test": source.train, **source.evaluation}
    source.evaluation["test"].num_batches = 1
    data = DataModule(source, 5)
    assert data.validation_names == ["validation", "twice_as_long"]
    assert data.test_names == ["test", "twice_as_long"]
    assert DataModule(source, 5, test=False).test_names == ["twice_as_long"]
