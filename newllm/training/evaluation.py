"""What a run's model has learned: its losses beside references, and what its context is worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from newllm.config.build import checked
from newllm.config.trust import Trust
from newllm.data.source import Source
from newllm.data.sources.sentences import SentenceSource
from newllm.reporting import figures
from newllm.reporting.evaluation import print_evaluation
from newllm.reporting.terminal import console
from newllm.runs.directory import LoadedRun, load_run, telling, write_text
from newllm.statistics.ablations import ablate, dynamics
from newllm.statistics.predictions import divergences, target_losses
from newllm.statistics.references import ReferenceModels, gap_closed
from newllm.training.metrics import split_metrics

SPLITS = ("train", "validation", "test")


def evaluate(path: Path, trusted_packages: Sequence[str] = ()) -> Path:
    """Evaluate a run, write what is found into a folder, which is returned, and print it.

    Args:
        path: the run's directory.
        trusted_packages: of the user, that parts of the run may come from.

    Raises:
        ValueError: the run or its data cannot be loaded.
        RuntimeError, IndexError: its parts do not fit each other.
    """
    run = load_run(path, trusted_packages)
    source = load_source(run, trusted_packages)
    folder = evaluation_folder(path)
    found = _found(run, source)
    write_text(folder / "evaluation.json", json.dumps(found, indent=2) + "\n")
    if "ablations" in found:
        name = run.result.get("name") or run.model.description
        title = figures.run_title(name, run.config.data, run.result.get("seed"))
        figure = figures.ablations(found["ablations"], found["dynamics"], title)
        figure.write_png(folder / "ablations.png")
    print_evaluation(found, run.model.sees_the_future, console())
    return folder


def _found(run: LoadedRun, source: Source) -> dict[str, Any]:
    """Everything that is looked at, by name: losses in nats per token."""
    if isinstance(source, SentenceSource):
        return _evaluate_sentences(run, source)
    metrics = {name: split_metrics(run.model, split) for name, split in source.evaluation.items()}
    return {"metrics": metrics}


def _evaluate_sentences(run: LoadedRun, data: SentenceSource) -> dict[str, Any]:
    found: dict[str, Any] = {"splits": {}}
    models = ReferenceModels(data)
    for split in SPLITS:
        if len(data.split(split)):
            found["splits"][split] = _losses(run, data, models, split)
    if run.model.recurrent_layers:
        found["ablations"] = asdict(ablate(run.model, data.split("validation")))
        found["dynamics"] = asdict(dynamics(run.model, data.split("validation")))
    return found


def _losses(
    run: LoadedRun, data: SentenceSource, models: ReferenceModels, split: str
) -> dict[str, Any]:
    loss = float(target_losses(run.model, data.split(split)).mean())
    means = models.on(split).means
    kl = divergences(run.model, data, split) if split == "validation" else None
    return {
        "loss": loss,
        "references": means,
        "gap_closed": gap_closed(loss, means),
        "kl": None if kl is None else float(kl.mean()),
    }


def load_source(run: LoadedRun, trusted_packages: Sequence[str] = ()) -> Source:
    """A run's data, read or drawn again; nothing is written.

    Raises:
        ValueError: it cannot be, or is not what the run was made of.
    """
    with telling(run.path, "config.yaml has no data"):
        node = run.config.get("data")
        part = checked(node, "data", Trust.in_stranger(trusted_packages))
        source = part.build(**({"directory": None} if part.target is SentenceSource else {}))
        if not isinstance(source, Source):
            raise ValueError("it is not a source")
        source.setup()
    if source.digest != run.result.get("data_sha256"):
        raise ValueError(
            f"{run.path}: its data has changed; a run can only be evaluated on the same data"
        )
    if source.vocabulary_size > run.model.vocabulary_size:
        raise ValueError(f"{run.path}: its data has more tokens than the model has classes")
    return source


def evaluation_folder(run: Path) -> Path:
    """`evaluation` of a run, made if it is missing; not what a link puts in its place."""
    folder = run / "evaluation"
    if folder.is_symlink():
        raise ValueError(f"{folder}: is a link; remove it; results are written inside the run only")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be made; {error.strerror}") from error
    return folder
