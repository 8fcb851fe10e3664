"""What a run's loggers are told beside the metrics, and how they are built.

Every logger gets the hyper-parameters, the references and the best; pictures, texts and histograms
are for TensorBoard, whose groups of tags stand in alphabetical order: the figures of a run come
first (`best/`), its pictures last (`view/`).
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig
from torch.utils.tensorboard.summary import hparams

from newllm.config.build import ConfigFault, instantiate, target_faults
from newllm.reporting.drawing import Figure

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


def build_loggers(config: DictConfig, folder: Path) -> list[Logger]:
    """The loggers of a configuration, which write into the run's folder unless told otherwise.

    A plan has none: some write as soon as they are built.

    Raises:
        ValueError: a logger that is not trusted, takes an argument amiss or needs a package.
    """
    nodes = {name: node for name, node in config.logger.items() if node and "_target_" in node}
    faults = [
        fault
        for name, node in nodes.items()
        for fault in _faults(f"logger.{name}", node, config.trusted_packages)
    ]
    if faults:
        raise ConfigFault(faults)
    chosen = [] if config.plan else nodes.values()
    return [_build(node, folder, config.trusted_packages) for node in chosen]


def _faults(place: str, node: DictConfig, trusted_packages: Sequence[str]) -> Iterator[str]:
    yield from target_faults(node, place, trusted_packages)
    package = PACKAGES.get(str(node["_target_"]).rpartition(".")[2])
    if package and importlib.util.find_spec(package) is None:
        yield f"{place}: requires a package that is not installed: pip install {package}"


def _build(node: DictConfig, folder: Path, trusted_packages: Sequence[str]) -> Logger:
    """One of them, with a place and a name if it takes one and none was chosen."""
    target = hydra.utils.get_object(str(node["_target_"]))
    kind = target if inspect.isclass(target) else object
    offered = {"save_dir": str(folder)}
    label = f"{folder.parent.name}/{folder.name}"
    if issubclass(kind, WandbLogger):
        offered["name"] = label
    if issubclass(kind, MLFlowLogger):
        offered |= {"save_dir": str(folder / "mlruns"), "run_name": label}
        # Files need no server, and no lock between the jobs of a sweep.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    taken = inspect.signature(target).parameters
    arguments = {
        key: value for key, value in offered.items() if key in taken and node.get(key) is None
    }
    logger: Logger = instantiate(node, trusted_packages, **arguments)
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
