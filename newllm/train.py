"""Train one experiment: `python -m newllm.train [GROUP=OPTION] [KEY=VALUE] ...`; see `--help`."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import seed_everything
from omegaconf import DictConfig

from newllm.config.build import ConfigFault, conf_directory
from newllm.config.command_line import command_line_faults
from newllm.config.composed import composed_faults
from newllm.experiment import Experiment, build_experiment
from newllm.recording import Diverged
from newllm.runs import RunDirectory, config_hash, git_revision, load_weights
from newllm.summary import print_banner, print_result

# What Lightning says at every start although no user of this program can act on it.
LIGHTNING_CHATTER = (".*does not have many workers.*", ".*LeafSpec.*", ".*lr_scheduler.step.*")

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
# Flags that Hydra answers by itself: help, or the configuration instead of a run.
HYDRA_QUESTIONS = (
    "-h",
    "--help",
    "--hydra-help",
    "-c",
    "--cfg",
    "-i",
    "--info",
    "--version",
    "-sc",
)


def train(config: DictConfig, folder: Path, experiment_name: str | None = None) -> dict[str, Any]:
    """Run one experiment in a folder of its own: build, fit, test, record.

    Returns:
        What `result.json` holds; nothing for `plan=true`.

    Raises:
        ConfigFault: the configuration cannot be built; nothing was written.
        Diverged: the loss is no longer finite; the run's result says so.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    seed_everything(config.seed, verbose=False)
    experiment = build_experiment(config, folder, config.name or experiment_name)
    print_banner(experiment)
    if config.plan:
        print(f"only planned; the training would take {experiment.estimated_seconds():.0f} s here")
        return {}
    run = RunDirectory(folder)
    started = time.monotonic()
    try:
        start_record(run, experiment, experiment_name)
        experiment.trainer.fit(experiment.module, datamodule=experiment.data)
        load_weights(experiment.model, run.checkpoints / "best.ckpt")
        if len(experiment.data.split("test")):
            experiment.trainer.test(experiment.module, datamodule=experiment.data, verbose=False)
        seconds = round(time.monotonic() - started, 1)
        result = run.record(status="done", seconds=seconds, **measured(experiment))
    except Diverged as error:
        run.record(status="diverged", error=str(error), **measured(experiment))
        raise
    except SystemExit:  # Lightning's answer to Ctrl-C
        print(f"interrupted; what was done lies in {folder}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        run.record(status="failed", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        run.release()
    log_best(experiment)
    print_result(result, experiment, folder)
    return result


def start_record(run: RunDirectory, experiment: Experiment, experiment_name: str | None) -> None:
    """Write down what is about to run, before it runs."""
    config, data, model = experiment.config, experiment.data, experiment.model
    run.write_config(config)
    data.tokenizer.save(run.path / "tokenizer.json")
    run.record(
        status="running",
        experiment=experiment_name,
        name=experiment.name,
        seed=config.seed,
        parameters=sum(weight.numel() for weight in model.parameters()),
        state_bytes=model.state_bytes(data.max_length),
        sees_the_future=model.sees_the_future,
        **dict.fromkeys(("steps", "epochs", "best_val_loss", "best_val_loss_batch_mean")),
        **dict.fromkeys(("best_epoch", "val_accuracy", "test_loss")),
        oracle_loss=data.oracle_loss("validation"),
        test_oracle_loss=data.oracle_loss("test"),
        entropy_floor=data.entropy_floor,
        references=experiment.references,
        seconds=None,
        threads=torch.get_num_threads(),
        error=None,
        git_revision=git_revision(),
        data_sha256=data.data_sha256,
        config_hash=config_hash(config),
    )
    for logger in experiment.trainer.loggers:
        logger.log_hyperparams(experiment.hyperparameters, {"hp/best_val_loss": float("nan")})


def measured(experiment: Experiment) -> dict[str, Any]:
    """The figures of a run, as far as it came. Each best is the best of its own curve."""
    history, trainer = experiment.history, experiment.trainer
    loss, epoch = history.best("val/loss")
    test_loss = trainer.callback_metrics.get("test/loss")
    return {
        "steps": trainer.global_step,
        "epochs": len(history.epochs),
        "best_val_loss": loss,
        "best_val_loss_batch_mean": history.best("val/loss_batch_mean")[0],
        "best_epoch": epoch,
        "val_accuracy": None if epoch is None else history.epochs[epoch - 1]["val/accuracy"],
        "test_loss": None if test_loss is None else test_loss.item(),
    }


def log_best(experiment: Experiment) -> None:
    """Fill in the figure that TensorBoard's HParams tab compares runs by."""
    best, _ = experiment.history.best("val/loss")
    assert best is not None
    for logger in experiment.trainer.loggers:
        logger.log_metrics({"hp/best_val_loss": best}, step=experiment.trainer.global_step)
        logger.finalize("success")


@hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name="config")
def run_job(config: DictConfig) -> float | None:
    """One job, single or of a multirun; returns the best validation loss for sweepers."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    try:
        if faults := composed_faults(config, hydra_config.overrides.task):
            raise ConfigFault(faults)
        result = train(config, folder, hydra_config.runtime.choices.get("experiment"))
    except (ConfigFault, Diverged) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return result.get("best_val_loss")


def main() -> None:
    """The command line: all its faults at once, else the run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for message in LIGHTNING_CHATTER:
        warnings.filterwarnings("ignore", message)
    arguments = sys.argv[1:]
    asks_hydra = any(word.partition("=")[0] in HYDRA_QUESTIONS for word in arguments)
    if not asks_hydra and (faults := command_line_faults(arguments)):
        print("\n".join(faults), file=sys.stderr)
        sys.exit(1)
    run_job()


if __name__ == "__main__":
    main()
