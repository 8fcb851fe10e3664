"""The jobs of a sweep and how they ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from newllm.config.leftovers import without_leftovers
from newllm.config.naming import run_folder
from newllm.data.corpora import NUM_SENTENCES
from newllm.runs import read_result

TEXT_SENTENCES = 10_000  # a guess, for the order of jobs only


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep."""

    config: DictConfig
    overrides: tuple[str, ...]
    folder: Path

    @classmethod
    def plan(cls, config: DictConfig, overrides: tuple[str, ...], top: Path) -> Job:
        """The job of some overrides, in its folder below `top`."""
        config = without_leftovers(config, overrides)
        return cls(config, overrides, top / run_folder(overrides, config.seed, top))

    @property
    def label(self) -> str:
        """Such as `phase1_baseline seed=1`."""
        return f"{self.folder.parent.name} {self.folder.name}"

    @property
    def cost(self) -> float:
        """Roughly proportional to its time."""
        model, data = self.config.model, self.config.data
        width = model.get("hidden_dim") or model.get("embedding_dim") or 1
        weights = self.config.budget.parameters or width**2 * model.num_layers
        sentences = (
            data.train_sentences
            or NUM_SENTENCES.get(data.corpus, 0)
            or (TEXT_SENTENCES if data.corpus == "text" else 100)
        )
        return float(weights * sentences * self.config.trainer.max_epochs)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `skipped` if it had ended before, else the status of its result."""

    status: str
    loss: float
    seconds: float
    reason: str


def read_outcome(job: Job, status: str | None = None) -> Outcome:
    """What a job's result says; `status` in the place of `done`."""
    try:
        result = read_result(job.folder)
    except ValueError as error:
        return Outcome("not started", math.inf, 0.0, str(error))
    loss = result.get("best_val_loss")
    return Outcome(
        status=status if status and result["status"] == "done" else result["status"],
        loss=math.inf if loss is None else loss,
        seconds=result.get("seconds") or 0.0,
        reason=(result.get("error") or "").partition("\n")[0],
    )
