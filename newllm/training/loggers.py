"""The loggers of a run, and what they log beside the metrics.

Every logger gets the hyper-parameters, the references and the best figures; TensorBoard also gets
figures, texts and histograms. TensorBoard sorts groups of tags by name: `best/` comes first, and
`view/`, with the figures, last.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig
from torch.utils.tensorboard.summary import hparams

from newllm.config.build import ConfigFault, instantiate, target_faults
from newllm.reporting.drawing import Figure

PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # optional packages
# The charts of TensorBoard's tab "Custom Scalars".
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
        "validation and its references": [
            "Multiline",
            ["^val/loss$", "^references/(bigram|trigram|grammar_known|oracle)$"],
        ]
    },
    "over seeds": {
        "validation loss": ["Margin", [f"val/loss/{tag}" for tag in ("mean", "low", "high")]]
    },
}


def build_loggers(config: DictConfig, folder: Path) -> list[Logger]:
    """The loggers of a configuration, which write into the run's folder unless told otherwise.

    With `plan=true` there are none, because some write as soon as they are built.

    Raises:
        ConfigFault: a logger that is not trusted, has a wrong argument or needs a package.
    """
    nodes = {name: node for name, node in config.logger.items() if node and "_target_" in node}
    faults = []
    for name, node in nodes.items():
        faults += target_faults(node, f"logger.{name}", config.trusted_packages)
        package = PACKAGES.get(str(node["_target_"]).rpartition(".")[2])
        if package and importlib.util.find_spec(package) is None:
            faults.append(
                f"logger.{name}: needs a package that is not installed: pip install {package}"
            )
    if faults:
        raise ConfigFault(faults)
    if config.plan:
        return []
    return [_build(node, folder, config.trusted_packages) for node in nodes.values()]


def _build(node: DictConfig, folder: Path, trusted_packages: Sequence[str]) -> Logger:
    """Build a logger; fill in its folder and name if it takes them and none was chosen."""
    target = hydra.utils.get_object(str(node["_target_"]))
    label = f"{folder.parent.name}/{folder.name}"
    defaults = {"save_dir": str(folder)}
    if target is WandbLogger:
        defaults["name"] = label
    if target is MLFlowLogger:
        defaults |= {"save_dir": str(folder / "mlruns"), "run_name": label}
        # Files need no server, and no lock between the jobs of a sweep.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    accepted = inspect.signature(target).parameters
    missing = {k: v for k, v in defaults.items() if k in accepted and node.get(k) is None}
    logger: Logger = instantiate(node, trusted_packages, **missing)
    return logger


def log_start(
    loggers: Sequence[Logger], hyperparameters: dict[str, Any], references: Mapping[str, float]
) -> None:
    """Log the hyper-parameters and the reference losses before the first step."""
    for logger in loggers:
        logger.log_hyperparams(hyperparameters)
        if isinstance(logger, TensorBoardLogger):
            # For the tab HParams, but without a list of columns: TensorBoard would use that of
            # whichever run it reads first for all of them.
            _, start, end = hparams(hyperparameters, {})
            writer = logger.experiment._get_file_writer()
            writer.add_summary(start, 0)
            writer.add_summary(end, 0)
            logger.experiment.add_custom_scalars(LAYOUT)
    log_references(loggers, references, 0)


def log_references(loggers: Sequence[Logger], references: Mapping[str, float], step: int) -> None:
    """Log the reference losses; at the first and the last step, they are horizontal lines."""
    for logger in loggers:
        logger.log_metrics({f"references/{k}": loss for k, loss in references.items()}, step=step)


def log_end(loggers: Sequence[Logger], best: Mapping[str, float | None], step: int) -> None:
    """Log `best/...`, the figures by which runs are compared, and close the loggers."""
    finite = {
        f"best/{name}": float(value)
        for name, value in best.items()
        if value is not None and math.isfinite(value)
    }
    for logger in loggers:
        logger.log_metrics(finite, step=step)
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # otherwise the next run of this process continues it


def log_figure(loggers: Sequence[Logger], name: str, figure: Figure, step: int) -> None:
    """A figure in TensorBoard, as `view/<name>`."""
    for board in boards(loggers):
        board.add_figure(f"view/{name}", figure, step)


def boards(loggers: Sequence[Logger]) -> list[Any]:
    """The writers of the TensorBoard loggers."""
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]
