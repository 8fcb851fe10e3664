"""Whole runs, as a user starts them, at a tiny size."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_CONTEXT, Command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from newllm.runs.directory import load_run

RESULT_FIELDS = {
    "status", "experiment", "name", "seed", "parameters", "state_bytes", "state_bits", "steps",
    "epochs", "best_val_loss", "best_val_loss_batch_mean", "best_epoch", "val_accuracy",
    "test_loss", "oracle_loss", "test_oracle_loss", "entropy_floor", "seconds", "threads", "error",
    "git_revision", "data_sha256", "config_hash",
}  # fmt: skip


def read_result(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as table:
        return list(csv.DictReader(table))


def test_a_run_leaves_a_whole_run_directory(command: Command, tmp_path: Path) -> None:
    done = command(
        "newllm.train", "trainer.max_epochs=3", "hydra.run.dir=run", *TINY_CONTEXT, "threads=1"
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    result, rows, steps = (
        read_result(folder),
        read_rows(folder / "metrics.csv"),
        read_rows(folder / "steps.csv"),
    )
    assert set(result) >= RESULT_FIELDS
    assert (result["status"], result["epochs"], result["steps"]) == ("done", 3, 75)
    assert result["name"] == "gated layernorm C8 H8 L2 E8"
    assert len(steps) == 75
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert result["best_val_loss"] == min(float(row["val/loss"]) for row in rows)
    assert {
        "train/loss", "train/loss_batch_mean", "train/loss_known", "train/perplexity",
        "train/accuracy", "val/loss", "val/loss_batch_mean", "val/loss_known",
        "val/perplexity", "val/accuracy", "grad/norm", "context/norm", "context/std",
    } <= set(rows[0])  # fmt: skip
    for name in ("config.yaml", "tokenizer.json", "curves.png", "checkpoints/best.ckpt"):
        assert (folder / name).stat().st_size > 0
    assert not (folder / "checkpoints" / "last.ckpt").exists()
    # The table names the result, what it is compared with, and what to do next.
    for text in ("this run (epoch", "oracle", "unigram", "bigram", "experiment=modern", "run"):
        assert text in done.stdout
    assert "countermeasures early_stopping" in " ".join(done.stdout.split())


def test_the_best_model_is_loaded_again(command: Command, tmp_path: Path) -> None:
    arguments = ("experiment=modern", "trainer.max_epochs=1", "hydra.run.dir=run", *TINY_CONTEXT)
    assert command("newllm.train", *arguments).returncode == 0
    run = load_run(tmp_path / "run")
    assert not run.model.training
    tokens = torch.tensor([run.tokenizer.encode("the old gardener")])
    logits, _ = run.model(tokens)
    assert logits.shape == (1, 5, run.tokenizer.size)
    longest = run.config.model.max_length
    for more, number in ((("-n", "1"), longest), (("-n", "1", "--max-tokens", "3"), 3)):
        done = command("newllm.generate", "run", "--prompt", "the " * longest, *more)
        told = f"the prompt has {longest + 1} tokens; the maximum is {number}; raise --max-tokens"
        assert (done.returncode, done.stderr.strip()) == (1, told)
    done = command("newllm.generate", "run", "--num", "3", "--prompt", "the old")
    assert done.returncode == 0, done.stderr
    assert [line[:7] for line in done.stdout.splitlines()] == ["the old"] * 3
    for more in (("-n", "1"), ("--endless", "--top-k", "5"), ("-n", "1", "--greedy")):
        done = command("newllm.generate", "run", "--prompt", "the old", "--max-tokens", "12", *more)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("the old")
        assert len(done.stdout.split()) <= 11  # words: all tokens but <BOS>
    for more in (("--top-p", "2"), ("-n", "1", "--max-tokens", "-1"), ("--max-tokens", "0")):
        done = command("newllm.generate", "run", *more)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    talk = [sys.executable, "-m", "newllm.generate", "run", "--interactive", "--max-tokens", "4"]
    told = subprocess.run(
        talk, input="the old\n/reset\n", cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert told.stderr.splitlines()[-1] == "the state is that of the beginning"
    done = command("newllm.generate", "nowhere", fresh=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    done = command("newllm.report", "run", "run", "--figure", "both.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "both.png").is_file()
    assert len(re.findall(r"^ modern .*  1  ", done.stdout, re.MULTILINE)) == 1  # each run once


def test_tensorboard_has_curves_samples_pictures_and_hyperparameters(
    command: Command, tmp_path: Path
) -> None:
    command("newllm.train", "trainer.max_epochs=1", "hydra.run.dir=run", *TINY_CONTEXT)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    tags = events.Tags()
    assert {"train/loss", "train/loss_by_step", "val/loss", "test/loss", "best/val_loss"} <= set(
        tags["scalars"]
    )
    assert {"view/context_over_time", "view/curves"} <= set(tags["images"])
    assert {"view/gates_forget", "view/gates_input"} <= set(tags["histograms"])
    assert "samples/text_summary" in tags["tensors"]
    references = read_result(tmp_path / "run")["references"]
    for name, loss in references.items():  # a level line, from the start to the end
        lines = events.Scalars(f"references/{name}")
        assert [line.step for line in lines] == [0, 25]
        assert [line.value for line in lines] == pytest.approx([loss] * 2, rel=1e-6)
    assert events.PluginTagToContent("hparams")
    assert events.Scalars("best/val_loss")[-1].value == pytest.approx(
        read_result(tmp_path / "run")["best_val_loss"], rel=1e-6
    )


def test_same_seed_same_weights_bit_for_bit(command: Command, tmp_path: Path) -> None:
    weights = []
    for folder, seed, fresh in (("a", 7, True), ("b", 7, False), ("c", 8, False)):
        done = command(
            "newllm.train", "trainer=smoke", "logger=none", "callbacks=none", *TINY_CONTEXT,
            f"seed={seed}", f"hydra.run.dir={folder}", "threads=1", fresh=fresh,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        checkpoint = torch.load(tmp_path / folder / "checkpoints" / "best.ckpt", weights_only=True)
        weights.append(checkpoint["model"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_divergence_is_a_status_with_a_reason(command: Command, tmp_path: Path) -> None:
    done = command(
        "newllm.train", "model=context", "normalization=none", "data=tiny30", "hydra.run.dir=run",
        *TINY_CONTEXT, "optimizer.lr=1e30", "recipe.gradient_clip=[]",
    )  # fmt: skip
    result = read_result(tmp_path / "run")
    assert done.returncode == 1
    assert result["status"] == "diverged"
    assert "loss is" in result["error"]
    assert result["error"] in done.stderr
    assert "Traceback" not in done.stderr
    # What led there is kept.
    assert result["seconds"] > 0
    assert read_rows(tmp_path / "run" / "steps.csv")
    assert "nan" in {row["val/loss"] for row in read_rows(tmp_path / "run" / "metrics.csv")}
    assert (tmp_path / "run" / "curves.png").is_file()


def test_the_jobs_of_a_sweep_go_on_after_one_that_fails(command: Command, tmp_path: Path) -> None:
    done = command(
        "newllm.train", "-m", "data=tiny30", "optimizer.lr=1e30,1e-4", "hydra.sweep.dir=sweep",
        "logger=none", "callbacks=none", *TINY_CONTEXT, "recipe.gradient_clip=[]",
        "trainer.max_epochs=3",
    )  # fmt: skip
    assert done.returncode == 1
    statuses = [read_result(path)["status"] for path in (tmp_path / "sweep").glob("*/seed=1/")]
    assert sorted(statuses) == ["diverged", "done"]


def test_plan_writes_nothing(command: Command, tmp_path: Path) -> None:
    done = command("newllm.train", "plan=true", *TINY_CONTEXT)
    assert done.returncode == 0, done.stderr
    assert "1,250 steps planned" in done.stdout
    assert not list(tmp_path.glob("outputs/*/*"))
    assert not (tmp_path / "data").exists()


def test_a_folder_that_holds_a_run_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{}")
    done = command("newllm.train", "trainer=smoke", "hydra.run.dir=run", *TINY_CONTEXT)
    assert done.returncode == 1
    assert "already contains a run" in done.stderr
    assert (tmp_path / "run" / "result.json").read_text() == "{}"


def test_the_leaky_transformer_says_so(command: Command, tmp_path: Path) -> None:
    done = command(
        "newllm.train", "model=transformer_leaky", "data=tiny30", "trainer=smoke",
        "model.embedding_dim=8", "model.num_layers=1", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sees the future" in done.stdout
    assert read_result(tmp_path / "run")["sees_the_future"] is True
