"""Evaluation of a run: its losses and their references, and what its context holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

from newllm.config.build import checked
from newllm.config.trust import Trust
from newllm.data.batch import device_of
from newllm.data.source import VALIDATION, Source
from newllm.data.streaming import EVALUATION_WINDOW
from newllm.data.tasks.task import Task
from newllm.data.tokenizer import EOS
from newllm.models.sampling import is_state_of
from newllm.reporting import figures
from newllm.reporting.terminal import console, print_evaluation, print_score
from newllm.runs.directory import LoadedRun, load_run, telling
from newllm.runs.files import is_of_type
from newllm.runs.saved_state import check_place, read_state, write_state
from newllm.runs.writing import write_text
from newllm.statistics.ablations import ablate, dynamics
from newllm.statistics.drift import by_tenths
from newllm.statistics.predictions import bits_per_byte, divergences, target_losses
from newllm.statistics.references import ReferenceModels, gap_closed
from newllm.statistics.text_score import TextScore, score_text, tokens_of_file
from newllm.training.metrics import split_metrics


def evaluate(path: Path, trusted_packages: Sequence[str] = ()) -> Path:
    """Evaluate a run, print the results and write them into a folder.

    Args:
        path: the run's directory.
        trusted_packages: further packages that parts of the run may come from.

    Returns:
        The folder.

    Raises:
        ValueError: the run or its data cannot be loaded.
        RuntimeError, IndexError: its parts do not fit each other.
    """
    run = load_run(path, trusted_packages)
    source = load_source(run, trusted_packages)
    folder = evaluation_folder(path)
    if source.encoded(VALIDATION) is not None:
        found = _evaluate_sequences(run, source)
    else:
        splits, tokenizer = source.evaluation.items(), source.tokenizer
        scored = {name: split_metrics(run.model, split, tokenizer) for name, split in splits}
        found = {"metrics": scored}
        if isinstance(source, Task):
            tenths = by_tenths(run.model, source)
            found["tenths"] = {name: asdict(split) for name, split in tenths.items()}
    write_text(folder / "evaluation.json", json.dumps(found, indent=2) + "\n")
    name = run.result.get("name") or run.model.description
    title = figures.run_title(name, run.config.data, run.result.get("seed"))
    if "ablations" in found:
        figure = figures.ablations(found["ablations"], found["dynamics"], title)
        figure.write_png(folder / "ablations.png")
    if "tenths" in found:
        figures.tenths(found["tenths"], title).write_png(folder / "positions.png")
    print_evaluation(found, run.model.sees_the_future, console())
    return folder


def evaluate_text(
    path: Path,
    text: Path,
    trusted_packages: Sequence[str] = (),
    start: Path | None = None,
    end: Path | None = None,
) -> None:
    """Score a text of any length with one state, and print the loss by distance to its start.

    Args:
        path: the run's directory.
        text: a file in UTF-8, read as one text.
        trusted_packages: further packages that parts of the run may come from.
        start: where an earlier call saved its state, to go on from; the text then continues its.
        end: where to save the state; the text then goes on, and has no `<EOS>`.

    Raises:
        ValueError: the run, the text or the saved state cannot be loaded, the state cannot be
            saved, or the text has no tokens, or more than a model with a table of positions can
            read.
    """
    if end is not None:
        check_place(end)
    run = load_run(path, trusted_packages)
    if run.tokenizer is None or run.model.sees_the_future:
        reason = "has no tokenizer" if run.tokenizer is None else "sees the future"
        raise ValueError(f"{path}: {reason} and cannot score a text")
    score = TextScore() if start is None else _load_score(start, run)
    before = score.num_tokens
    tokens = tokens_of_file(text, run.tokenizer, is_whole=end is None)
    score_text(run.model, run.tokenizer, tokens, score)
    num_tokens = score.num_tokens - before
    if num_tokens == 0 or (num_tokens == 1 and score.last == EOS and start is None):
        raise ValueError(f"{text}: has no tokens")
    if end is not None:
        write_state(end, "text", run, vars(score))
    print_score(score, console())


def _load_score(path: Path, run: LoadedRun) -> TextScore:
    types, model = get_type_hints(TextScore), run.model
    content = read_state(path, "text", run)
    if not (
        isinstance(content, dict)
        and content.keys() == types.keys()
        and is_state_of(model, content["state"], 1)
        and all(is_of_type(content[name], types[name]) for name in types if name != "state")
        and 0 <= content["last"] < model.vocabulary_size
    ):
        raise ValueError(f"{path}: is damaged; it holds no state of a text")
    score = TextScore(**content)
    if score.state is not None:
        score.state = tuple(part.to(device_of(model)) for part in score.state)
    return score


def _evaluate_sequences(run: LoadedRun, source: Source) -> dict[str, Any]:
    """Losses of each split in nats per token, and what the context is worth."""
    found: dict[str, Any] = {"splits": {}}
    models = ReferenceModels(source)
    for name in ("train", *source.evaluation):
        split = source.encoded(name)
        if split is None or not len(split):
            continue
        losses = target_losses(run.model, split)
        references = models.on(name)
        loss, means = float(losses.mean()), references.means
        kl = divergences(run.model, source, name) if name == VALIDATION else None
        found["splits"][name] = {
            "loss": loss,
            "references": means,
            "gap_closed": gap_closed(loss, means),
            "kl": None if kl is None else float(kl.mean()),
        }
        if (bits := bits_per_byte(losses, source, name)) is not None:
            found["splits"][name] |= {
                "bits_per_byte": bits,
                "references_bits_per_byte": references.in_bits_per_byte,
            }
    split = source.encoded(VALIDATION)
    if run.model.recurrent_layers and split is not None:
        rows = split.cut(EVALUATION_WINDOW)
        found["ablations"] = asdict(ablate(run.model, rows))
        found["dynamics"] = asdict(dynamics(run.model, rows))
    return found


def load_source(run: LoadedRun, trusted_packages: Sequence[str] = ()) -> Source:
    """Load or generate the data of a run again; nothing is written.

    Raises:
        ValueError: it cannot be loaded, or is not the data that the run was trained on.
    """
    with telling(run.path, "its data cannot be built"):
        node = run.config.get("data")
        part = checked(node, "data", Trust.in_strangers_data(trusted_packages))
        source = part.build(**({"directory": None} if "directory" in part.arguments else {}))
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
    """The folder `evaluation` of a run, created if missing; a link is refused."""
    folder = run / "evaluation"
    if folder.is_symlink():
        raise ValueError(f"{folder}: is a link; remove it; results are written inside the run only")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be made; {error.strerror}") from error
    return folder
