"""What a run's model has learned: `python -m newllm.evaluate RUN`; see `--help`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from newllm.config.arguments import Arguments, ends_with_its_reader
from newllm.config.build import checked
from newllm.config.trust import Trust
from newllm.data.reading import one_line
from newllm.data.source import Source
from newllm.data.sources.sentences import SentenceSource
from newllm.reporting import figures
from newllm.runs.directory import LoadedRun, load_run, telling, write_text
from newllm.statistics.ablations import ablate, dynamics
from newllm.statistics.predictions import divergences, target_losses
from newllm.statistics.references import ReferenceModels, gap_closed
from newllm.training.metrics import split_metrics

SPLITS = ("train", "validation", "test")


def evaluate(run: LoadedRun, source: Source) -> dict[str, Any]:
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


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> Table:
    """The metrics of each split."""
    names = list(dict.fromkeys(name for row in metrics.values() for name in row))
    table = Table("split", *names, box=None)
    for split, row in metrics.items():
        table.add_row(split, *(_number(row.get(name)) for name in names))
    return table


def split_table(splits: Mapping[str, Any]) -> Table:
    """The loss of each split beside its references."""
    table = Table(box=None)
    names = list(dict.fromkeys(name for row in splits.values() for name in row["references"]))
    table.add_column("nats per token")
    for split in splits:
        table.add_column(split, justify="right")
    for name in names:
        losses = (row["references"].get(name) for row in splits.values())
        table.add_row(name.replace("_", " "), *(_number(loss) for loss in losses))
    table.add_row("this model", *(_number(row["loss"]) for row in splits.values()), style="bold")
    closed = (row["gap_closed"] for row in splits.values())
    table.add_row("gap closed", *("-" if x is None else f"{100 * x:.1f} %" for x in closed))
    return table


def ablation_table(ablations: Mapping[str, Any]) -> Table:
    """What the context is worth."""
    intact = ablations["loss"]
    table = Table(box=None)
    for heading in ("context", "loss", "worse by"):
        table.add_column(heading, justify="left" if heading == "context" else "right")
    table.add_row("as it is", _number(intact), "")
    rows = {"always zero": "zeroed", "of another sentence": "shuffled"}
    for name, key in rows.items():
        if ablations[key] is None:
            continue
        table.add_row(name, _number(ablations[key]), _number(ablations[key] - intact))
    for frozen in ablations["frozen"]:
        name = f"frozen after {frozen['after']} tokens (loss from there on)"
        worse = frozen["loss"] - frozen["loss_intact"]
        table.add_row(name, _number(frozen["loss"]), _number(worse))
    return table


def dynamics_lines(found: Mapping[str, Any]) -> list[str]:
    """What the context does over time, in words."""
    low, high = found["singular_value_range"]
    norms = found["gradient_norms"]
    reach = f", {len(norms) - 1} tokens before: {norms[-1]:.5f}" if len(norms) > 1 else ""
    return [
        f"effective rank of the contexts: {found['effective_rank']:.1f} of {found['context_dim']}",
        f"largest singular value of d context_t / d context_(t-1): {found['singular_value']:.3f} "
        f"({low:.3f} to {high:.3f})",
        f"largest Lyapunov exponent, over a sentence: {found['lyapunov_exponent']:+.3f} nats per "
        "token",
        f"gradient of a loss by the context just before it: {norms[0]:.4f}{reach}",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


@ends_with_its_reader
def main() -> None:
    """The command line."""
    parser = Arguments(
        prog="python -m newllm.evaluate",
        description="Look at what a run's model has learned: its losses beside the references of "
        "each split, what its context is worth, and how that behaves over time.",
    )
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--trust", metavar="PACKAGE", action="append", default=[],
                        help="a package of yours that parts of the run come from")  # fmt: skip
    options = parser.parse_args()
    try:
        run = load_run(options.run, options.trust)
        source = load_source(run, options.trust)
        folder = evaluation_folder(options.run)
        found = evaluate(run, source)
    except (ValueError, RuntimeError, IndexError) as error:  # of parts that do not fit each other
        sys.exit(one_line(error))
    _show(found, run.model.sees_the_future, Console(highlight=False))
    write_text(folder / "evaluation.json", json.dumps(found, indent=2) + "\n")
    if "ablations" in found:
        result = run.result
        name = result.get("name") or run.model.description
        title = figures.run_title(name, run.config.data, result.get("seed"))
        figure = figures.ablations(found["ablations"], found["dynamics"], title)
        figure.write_png(folder / "ablations.png")
    print(f"all of it lies in {folder}")


def load_source(run: LoadedRun, trusted_packages: Sequence[str] = ()) -> Source:
    """A run's data, read or drawn again; nothing is written.

    Raises:
        ValueError: it cannot be, or is not what the run was made of.
    """
    with telling(run.path, "config.yaml describes no data"):
        node = run.config.get("data")
        part = checked(node, "data", Trust.in_stranger(trusted_packages))
        source = part.build(**({"directory": None} if part.target is SentenceSource else {}))
        if not isinstance(source, Source):
            raise ValueError("it is no source")
        source.setup()
    if source.digest != run.result.get("data_sha256"):
        raise ValueError(f"{run.path}: its data has changed since; evaluate a run on data as it is")
    if source.vocabulary_size > run.model.vocabulary_size:
        raise ValueError(f"{run.path}: its data has more tokens than the model has classes")
    return source


def evaluation_folder(run: Path) -> Path:
    """`evaluation` of a run, made if it is missing; not what a link puts in its place."""
    folder = run / "evaluation"
    if folder.is_symlink():
        raise ValueError(f"{folder}: is a link; remove it, since nothing is written elsewhere")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be made; {error.strerror}") from error
    return folder


def _show(found: Mapping[str, Any], sees_the_future: bool, console: Console) -> None:
    if not console.is_terminal:
        console.width = 250
    if sees_the_future:
        console.print("[bold red]void:[/] it saw the future; these are no language-model losses")
    if "metrics" in found:
        console.print(metrics_table(found["metrics"]))
        return
    console.print(split_table(found["splits"]))
    kl = found["splits"]["validation"]["kl"]
    if kl is not None:
        console.print(f"expected excess over the grammar (KL, validation): {kl:.4f} nats per token")
    if "ablations" in found:
        console.print()
        console.print(ablation_table(found["ablations"]))
        console.print()
        console.print("\n".join(dynamics_lines(found["dynamics"])))


if __name__ == "__main__":
    main()
