"""What a run's loggers are told beside the metrics, and how they are built.

Every logger gets the hyper-parameters, the references and the best; pictures, texts and histograms
are for TensorBoard, whose groups of tags stand in alphabetical order: the figures of a run come
first (`best/`), its pictures last (`view/`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig
from torch.utils.tensorboard.summary import hparams

from newllm.analysis.drawing import Figure
from newllm.config.build import instantiate, target_faults

PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # loggers that need one
# Those that a loss comes near to.
SHOWN_REFERENCES = ("bigram", "trigram", "grammar_known", "oracle")
# TensorBoard's tab "Custom Scalars": what belongs together in one chart.
LAYOUT = {
    "loss": {
        f"train and validation {when}": ["Multiline", [f"^train/{tag}$", f"^val/{tag}$"]]
        for when, tag in (
            ("at the end of each epoch", "loss"),
            ("by step", "loss_by_step"),
            ("by tokens seen", "loss_by_tokens"),
        )
    },
    "references": {
        "validation beside them": [
            "Multiline",
            ["^val/loss$", *(f"^references/{name}$" for name in SHOWN_REFERENCES)],
        ]
    },
    "over seeds": {
        "validation loss": ["Margin", [f"val/loss/{tag}" for tag in ("mean", "low", "high")]]
    },
}


def build_loggers(
    nodes: Mapping[str, Any], folder: Path, trusted_packages: Sequence[str] = ()
) -> list[Logger]:
    """The loggers of a configuration, all of which write into the run's folder.

    Raises:
        ValueError: a logger that is not trusted, takes an argument amiss or needs a package.
    """
    chosen = {name: node for name, node in nodes.items() if node and "_target_" in node}
    return [_build(str(name), node, folder, trusted_packages) for name, node in chosen.items()]


def _build(name: str, node: DictConfig, folder: Path, trusted_packages: Sequence[str]) -> Logger:
    if faults := list(target_faults(node, f"logger.{name}", trusted_packages)):
        raise ValueError("\n".join(faults))
    target = hydra.utils.get_object(str(node["_target_"]))
    label = f"{folder.parent.name}/{folder.name}"
    offered = {"save_dir": str(folder), "run_name": label}
    if inspect.isclass(target) and issubclass(target, WandbLogger):
        offered["name"] = label
    taken = inspect.signature(target).parameters
    arguments = {
        key: value for key, value in offered.items() if key in taken and node.get(key) is None
    }
    try:
        logger: Logger = instantiate(node, trusted_packages, **arguments)
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, ImportError):
            reason = f"{target.__name__} needs a package that is not installed"
            package = PACKAGES.get(target.__name__)
            hint = f"pip install {package}" if package else str(cause).splitlines()[0]
            raise ValueError(f"logger.{name}: {reason}; {hint}") from error
        raise
    return logger


def log_start(
    loggers: Sequence[Logger], hyperparameters: dict[str, Any], references: Mapping[str, float]
) -> None:
    """Before the first step: what decides the run, and what its losses will be set beside."""
    for logger in loggers:
        logger.log_hyperparams(hyperparameters)
        if isinstance(logger, TensorBoardLogger):
            _log_session(logger, hyperparameters)
            logger.experiment.add_custom_scalars(LAYOUT)
    log_references(loggers, references, 0)


def _log_session(logger: TensorBoardLogger, hyperparameters: dict[str, Any]) -> None:
    """What the run is, for the tab HParams, without a list of columns.

    TensorBoard takes such a list from whichever run it reads first. Without one it gathers the
    columns of all runs, and puts those in which they differ first.
    """
    _, start, end = hparams(hyperparameters, {})
    writer = logger.experiment._get_file_writer()
    for summary in (start, end):
        writer.add_summary(summary, 0)


def log_references(loggers: Sequence[Logger], references: Mapping[str, float], step: int) -> None:
    """As scalars at the start and at the end, which makes them level lines beside the curves."""
    losses = {f"references/{name}": loss for name, loss in references.items()}
    for logger in loggers:
        logger.log_metrics(losses, step=step)


def log_end(loggers: Sequence[Logger], best: Mapping[str, float | None], step: int) -> None:
    """The figures by which runs are compared, as `best/...`; nothing is logged after them."""
    found = {
        f"best/{name}": float(value)
        for name, value in best.items()
        if value is not None and math.isfinite(value)
    }
    for logger in loggers:
        logger.log_metrics(found, step=step)
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # else the next run of this process goes on with it


def log_text(loggers: Sequence[Logger], name: str, lines: Sequence[str], step: int) -> None:
    """Lines as they are, in TensorBoard's tab Text."""
    for board in boards(loggers):
        board.add_text(name, "\n".join(f"    {line}" for line in lines), step)


def log_figure(loggers: Sequence[Logger], name: str, figure: Figure, step: int) -> None:
    """A picture, in TensorBoard, as `view/<name>`."""
    for board in boards(loggers):
        board.add_figure(f"view/{name}", figure, step)


def boards(loggers: Sequence[Logger]) -> list[Any]:
    """TensorBoard's writers, of the loggers that have one."""
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]
